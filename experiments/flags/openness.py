"""The flags of experiments.openness."""

from typing import Any

from absl import flags

from fedjax_post.core.access import LEVELS
from fedjax_post.experiments.flags import lists


def define_openness(values: flags.FlagValues) -> None:
    """Defines what is asked of a base, and how its ladder is run."""
    give: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string("passport", None, "print a model's passport; 'all': a table of all", **give)
    about = "print which methods a model's access allows, and why not the others; 'all': a matrix"
    flags.DEFINE_string("what_can_i_run", None, about, **give)
    about = "with --what_can_i_run: print what would be lost if it were open only to this tier"
    tiers = [str(level.name) for level in LEVELS]
    flags.DEFINE_enum("downgrade", None, tiers, about, case_sensitive=False, **give)
    task = "run a task at every level of access: a ladder's name, or the path of your own .toml"
    flags.DEFINE_string("task", None, task, **give)
    about = "with --task: run these cells alone, and no drills or attacks; the report is of all"
    flags.DEFINE_list("only", [], about, **give)
    about = "with --task: check every run, print its cost, and exit"
    flags.DEFINE_bool("dry_run", False, about, **give)
    about = "write what ladders of several tasks, two folders or more, come to together"
    flags.DEFINE_list("over", [], about, **give)
    flags.DEFINE_bool("trust_code", False, "import functions that the ladder's file names", **give)
    lists.define_many(values, usual="0", of="ladder")
