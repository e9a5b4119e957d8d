"""What an adversary sees of a federation, as values: attacks are given nothing else.

None of these types has a place for the clients' rows, the run's state or its checkpoints. Scores
compare what an attack returns with the truth afterwards; see `scores`.

| adversary | sees of a round |
| --- | --- |
| server | what it sends, and every upload; follows the protocol, but is curious |
| server, under secure sums | what it sends, and the sum of the uploads |
| participant | what the server sends in this round and in the next one, as every client does |
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fedjax_post.model.views import LanguageModel

PyTree = Any
SERVER, PARTICIPANT = "server", "participant"
ADVERSARIES = (SERVER, PARTICIPANT)


class Public(NamedTuple):
    """What all who take part in a run know: the base, the tokenizer and the settings."""

    model: LanguageModel  # frozen, prepared for the adapter
    decode_fn: Callable[[Sequence[int]], str]  # tokens -> text, without special tokens
    optimizer: str  # of a local step, such as "sgd"
    learning_rate: float  # of a local step
    batch_size: int  # rows in a local step
    max_length: int  # tokens in a row
    eos_id: int  # token that ends a row
    pad_id: int


class Sent(NamedTuple):
    """A change of the parameters that an adversary sees, and where it began.

    Trees have the form of a model's `params`: `{"lora": ..}` with `a` and `b`, or `{"params": ..}`.
    """

    round: int
    clients: tuple[int, ...]  # one for an upload, those of the cohort for a sum or a broadcast
    start: PyTree  # what these clients received, float32
    change: PyTree  # their change of it, or the weighted mean of their changes, float32
    num_steps: float  # local steps of each client


class Seen(NamedTuple):
    """What one adversary sees of a run."""

    adversary: str  # of `ADVERSARIES`
    public: Public
    sent: tuple[Sent, ...]
