"""What the library says of its arguments is said of flags on the command line."""

import pytest

from experiments import flags
from experiments.wording import in_flags

KNOWN = frozenset(flags.define())


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("max_length=20 leaves no response", "--max_length=20 leaves no response"),
        ("rank must be at least 1; give `rank`", "rank must be at least 1; give --lora_rank"),
        (
            "choose `label=task`, or `partition=iid`",
            "choose --label_column=task, or --partition=iid",
        ),
        ("--num_clients=3 stays", "--num_clients=3 stays"),
        ("`unheard_of` and other=1 stay", "`unheard_of` and other=1 stay"),
        ("config.alpha=2 is of another place", "config.alpha=2 is of another place"),
    ],
)
def test_arguments_become_flags(message, expected):
    assert in_flags(message, KNOWN) == expected
