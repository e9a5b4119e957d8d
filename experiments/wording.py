"""Messages of the library, in the words of the command line.

The library names its own arguments, as `max_length=20` or in backticks. A person who types flags
reads `--max_length=20` instead. This is the only place where one becomes the other.
"""

import re
from collections.abc import Container

# Arguments of the library whose flag has another name.
_FLAG_OF = {
    "rank": "lora_rank",
    "alpha": "partition_alpha",
    "rounds": "num_rounds",
    "directory": "output_dir",
    "prompt": "prompt_column",
    "response": "response_column",
    "context": "context_column",
    "messages": "messages_column",
    "label": "label_column",
    "client": "client_column",
    "system": "system_column",
    "history": "history_column",
    "tools": "tools_column",
    "rejected": "rejected_column",
    "url": "provider_url",
    "timeout": "provider_timeout",
    "refused_pattern": "refuse_pattern",
}
_ARGUMENT = re.compile(
    r"`(?P<quoted>[a-z]\w*)(?P<value>=[^`]*)?`|(?<![\w.`-])(?P<given>[a-z]\w*)(?==)"
)


def in_flags(message: str, known: Container[str]) -> str:
    """Returns a message in which the arguments that have a flag are written as that flag.

    Args:
      message: names arguments as `` `name` ``, `` `name=value` `` or name=value; all else, flags
        included, stays as it is.
      known: names of the flags that there are.
    """

    def reworded(match: re.Match) -> str:
        name = match["quoted"] or match["given"]
        flag = name if name in known else _FLAG_OF.get(name)
        return match[0] if flag not in known else f"--{flag}{match['value'] or ''}"

    return _ARGUMENT.sub(reworded, message)
