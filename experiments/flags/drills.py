"""The flags of experiments.drills."""

from typing import Any

from absl import flags

from fedjax_post.experiments.flags import lists
from fedjax_post.report.position.ladder import MEASURES
from fedjax_post.study.autonomy import DRILLS
from fedjax_post.study.faults import Settings


def define_drills(values: flags.FlagValues) -> None:
    """Defines which faults befall which methods."""
    usual = Settings()
    give: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_list("drills", ["all"], f"all, or of {', '.join(DRILLS)}", **give)
    flags.DEFINE_string("methods", "", "name:flag=value:.., with commas between", **give)
    lists.define_many(values, usual="0", of="drills")
    whole: dict[str, tuple[Any, str]] = {
        "at_round": (None, "first round of a fault (half of the rounds)"),
        "rate_limit": (usual.rate_limit, "clients that are answered in a round of `rate_limited`"),
        "refused_client": (usual.refused_client, "the client that `refused` refuses"),
        "excluded_clients": (None, "number of clients that the exclusions exclude (a quarter)"),
        "own_examples": (
            usual.own_examples,
            "rows of the excluded clients that are scored; 0: all",
        ),
    }
    for name, (default, about) in whole.items():
        low = 0 if name in ("refused_client", "own_examples") else 1
        flags.DEFINE_integer(name, default, about, lower_bound=low, **give)
    other = "distance of another version's matrices, in their standard deviations"
    flags.DEFINE_float("change", usual.change, other, lower_bound=0.0, **give)
    version = "base of the same shapes that is the other version (the base with noise)"
    flags.DEFINE_string("next_version", usual.next_version, version, **give)
    terms = "licence under which the weights are taken to be in excluded_weights_licence"
    flags.DEFINE_string("weights_licence", usual.weights_licence, terms, **give)
    for name, about in (("least_memory", "smallest"), ("most_memory", "largest")):
        about += " memory of a client, in sizes of the target's weights"
        flags.DEFINE_float(name, getattr(usual, name), about, lower_bound=0.0, **give)
    about = "the score by which losses are told"
    flags.DEFINE_enum("measure", usual.measure, MEASURES, about, **give)
    flags.DEFINE_string("passport", "", "name of the base's passport (by --model)", **give)
    flags.DEFINE_string("data_licence", "unknown", "licence of the clients' data", **give)
