"""Messages of the library, with its arguments written as flags.

The library names its own arguments and fields, as `max_length=20` or in backticks. Users of the
command line read `--max_length=20` instead. Only this module replaces one by the other.
"""

import re
from collections import Counter
from collections.abc import Mapping

from fedjax_post.data.columns import Columns
from fedjax_post.experiments.flags.define import FLAGS, OWN

# Arguments of functions for which some programs have flags of the same name.
_OWN = (
    *("ask_again", "trust_code", "passport", "what_can_i_run", "downgrade", "seeds", "drills"),
    *("tasks", "num_fewshot", "limit"),
    "adversary",
    *("port", "host", "log", "api_key_env", "change_after", "then_model", "then_adapter"),
    *("at_round", "rate_limit", "refused_client", "excluded_clients", "change"),
    *("next_version", "least_memory", "most_memory", "weights_licence"),
)
# Arguments of the library whose flag has another name, in addition to fields of an experiment.
_ARGUMENTS = {
    "path": "model",
    "directory": "output_dir",
    "resume": "resume",
    **{name: name for name in _OWN},
    "url": "provider_url",
    "timeout": "provider_timeout",
    "refused_pattern": "refuse_pattern",
    **{role: f"{role}_column" for role in (*Columns._fields, "rejected")},
}
_NAME = r"[a-z]\w*(?:\.[a-z]\w*){0,2}"
_ARGUMENT = re.compile(
    rf"`(?P<quoted>{_NAME})(?P<value>=[^`]*)?`|(?<![\w.`'-])(?P<given>{_NAME})(?==)"
)


def _flag_of() -> Mapping[str, str]:
    """The flag of each name: a field's path, a section, and a field's name where it is unique."""
    short = Counter(flag.path.rpartition(".")[2] for flag in FLAGS.values())
    found = dict(_ARGUMENTS)
    for flag in FLAGS.values():
        section, _, name = flag.path.rpartition(".")
        if name in ("name", "source", "kind"):
            found[section] = flag.name
        elif short[name] == 1:
            found[name] = flag.name
        found[flag.path] = flag.name
    return found | {name: name for name in FLAGS}


_FLAG_OF = _flag_of()


def in_flags(message: str) -> str:
    """Returns a message in which arguments that have a flag are written as that flag.

    Args:
      message: names arguments as `` `name` ``, `` `name=value` `` or name=value; the rest of the
        text, flags included, does not change.

    Example:
      >>> in_flags("rank=0: it must be at least 1; see `max_length`")
      '--lora_rank=0: it must be at least 1; see --max_length'
    """

    def reword(match: re.Match) -> str:
        name = match["quoted"] or match["given"]
        own = name.startswith(f"{OWN}.")
        flag = name.removeprefix(f"{OWN}.") if own else _FLAG_OF.get(name)
        return match[0] if flag is None else f"--{flag}{match['value'] or ''}"

    return _ARGUMENT.sub(reword, message)
