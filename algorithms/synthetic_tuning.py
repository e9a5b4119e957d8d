"""Fine-tuning as a service on synthetic rows: clients keep their rows and upload crossed ones.

As `host_tuning`, whose host trains LoRA (Hu et al., ICLR 2022, arXiv:2106.09685). A client makes
each row that it uploads of two of its own with one answer, by uniform crossover of their tokens, as
genetic algorithms cross parents. No uploaded row equals one of the client's own; every token and
every label of it does stand in one, so the meter counts all of them as private.

It suits short texts of fixed form. Rows of free text rarely have questions of the same length, and
a client without two rows that can be crossed uploads nothing. It is this project's own and follows
no paper; rows that a language model writes are what is used for free text.
"""

from fedjax_post.algorithms.host_tuning import uploading
from fedjax_post.blackbox import crossed
from fedjax_post.core import algorithm, world


def synthetic_tuning(
    loss_fn: world.LossFn,
    *,
    dropped: world.Specials,
    num_clients: world.NumClients,
    num_synthetic: int = 64,
    num_epochs: int = 3,
    batch_rows: int = 8,
    multiplier: float = 1.0,
) -> algorithm.Algorithm:
    """Has the host of a closed model train it on rows that clients made of their own.

    Args:
      loss_fn: never called.
      dropped: int32 `[D]`: tokens of answers that are not sent, such as bos and eos.
      num_clients: of the federation.
      num_synthetic: rows that a client tries to make at its first visit, at least 1.
      num_epochs: as in `host_tuning`.
      batch_rows: as in `host_tuning`.
      multiplier: as in `host_tuning`.

    Returns:
      An algorithm that needs TEXT and FINETUNE; otherwise as `host_tuning`.

    Raises:
      ValueError: if a number is out of its range.
    """
    del loss_fn
    if num_synthetic < 1:
        raise ValueError(f"num_synthetic must be at least 1, got {num_synthetic}")
    settings = {"num_epochs": num_epochs, "batch_rows": batch_rows, "multiplier": multiplier}

    def make(rows, key):
        tokens, question, answer = rows
        return crossed.cross_rows(tokens, question, answer, key, num=num_synthetic)

    return uploading(make, dropped=dropped, num_clients=num_clients, **settings)
