"""Messages of the library name flags on the command line."""

import pytest

from fedjax_post.experiments import serve_provider, train
from fedjax_post.experiments.flags import in_flags
from fedjax_post.hub.files import PACKAGED


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("max_length=20 leaves no response", "--max_length=20 leaves no response"),
        ("rank must be at least 1; give `rank`", "rank must be at least 1; give --lora_rank"),
        ("choose `label=task`", "choose --label_column=task"),
        ("rounds=0 must be at least 1", "--num_rounds=0 must be at least 1"),
        ("privacy.clip=1 needs `privacy.epsilon`", "--dp_clip=1 needs --dp_epsilon"),
        ("method=fedavg is no algorithm", "--algorithm=fedavg is no algorithm"),
        ("--num_clients=3 stays", "--num_clients=3 stays"),
        ("`unheard_of` and other=1 stay", "`unheard_of` and other=1 stay"),
        ("config.alpha=2 is of another place", "config.alpha=2 is of another place"),
    ],
)  # fmt: skip
def test_arguments_become_flags(message, expected):
    assert in_flags(message) == expected


@pytest.mark.parametrize("program", [train, serve_provider], ids=["train", "serve_provider"])
def test_help_says_what_can_be_a_model(program, capsys):
    assert program.main([program.__name__, "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for name in (*PACKAGED, ".gguf file", "Hugging Face folder", "hub name"):
        assert name in told
