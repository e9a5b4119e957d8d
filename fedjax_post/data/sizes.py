"""Partitions by quantity: clients differ in how many rows they have, and in nothing else."""

import numpy as np

from fedjax_post.data.partition import (
    Partition,
    apportion,
    check_num_clients,
    group_by_owner,
)

LAWS = ("lognormal", "power_law", "poisson")


def quantity(
    num_rows: int,
    num_clients: int,
    *,
    law: str = "lognormal",
    skew: float = 1.0,
    seed: int = 0,
) -> Partition:
    """Returns a partition of shuffled rows into clients whose sizes follow a law.

    Each client has one row; the other M = `num_rows` - N rows are divided as follows, rounded by
    largest remainders.

    | law | rows of client k beyond the first | source |
    | --- | --- | --- |
    | `lognormal` | M w_k / sum w, with log w_k ~ N(0, skew^2) | [1], synthetic data: skew 2 |
    | `power_law` | M r_k^-skew / sum r^-skew, r_k the client's rank from 1 | [1], MNIST |
    | `poisson` | Poisson(M / N), given that their sum is M | [2], with the mean 16 for Alpaca |

    The ranks are a random order of the clients. With skew 0, the first two laws give equal sizes.

    [1] Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020,
    arXiv:1812.06127, section 5.1 and its published generator. [2] Granqvist et al., "pfl-research:
    Simulation Framework for Accelerating Research in Private Federated Learning", 2024,
    arXiv:2404.06430, whose code draws again where a client would have no row.

    Args:
      num_rows: number of rows to divide.
      num_clients: N, at most `num_rows`.
      law: one of `LAWS`.
      skew: the standard deviation of the logarithm, or the exponent of the rank; at least 0.
        `poisson` does not read it.
      seed: equal seeds give equal partitions.

    Raises:
      ValueError: for an unknown law or a negative skew, and as `iid`.

    Example:
      >>> np.diff(quantity(43, 3, law="power_law", skew=1.0).offsets).max()  # 1 + 40 * 6 / 11
      np.int64(23)
    """
    check_law(law, skew)
    check_num_clients(num_clients, num_rows)
    rng = np.random.default_rng(seed)
    rest = num_rows - num_clients
    if law == "poisson":
        more = rng.multinomial(rest, np.full(num_clients, 1 / num_clients))
    elif law == "power_law":
        more = apportion(rest, (1.0 + rng.permutation(num_clients)) ** -skew)
    else:
        scaled = skew * rng.standard_normal(num_clients)
        more = apportion(rest, np.exp(scaled - scaled.max()))
    owner = np.repeat(np.arange(num_clients), 1 + more)
    return group_by_owner(rng.permutation(owner), num_clients)


def check_law(law: str, skew: float) -> None:
    """Raises for an unknown law, and for a skew that is negative or not finite."""
    if law not in LAWS:
        raise ValueError(f"law must be one of {', '.join(LAWS)}, got {law}")
    if not 0 <= skew < np.inf:
        raise ValueError(f"skew must be finite and at least 0, got {skew}")
