"""How a score differs between clients: means, the worst tenth, variance and Jain's index.

Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020,
arXiv:1905.10497, report the mean over clients, the mean of the worst 10 % of them and the variance
(Table 1). The index is that of Jain, Chiu, Hawe, "A Quantitative Measure of Fairness and
Discrimination for Resource Allocation in Shared Computer Systems", DEC-TR-301, 1984.

| clients | result |
| --- | --- |
| one | all means and the worst tenth are its score, the variance is 0, the index 1 |
| without the score, as it has no rows for it | left out, and counted in `unscored` |
| none has the score | no entry for the score |
| a score that is NaN or infinite | so is every number but the counts |
| all scores 0 | the index is 1: they are equal |
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Names of scores; of all others, higher is better
LOWER_IS_BETTER = ("loss", "accuracy_undecided", "accuracy_pmi_undecided")


class Spread(NamedTuple):
    """A score over clients, in the unit of the score."""

    clients: int  # those that have the score
    unscored: int  # clients that do not
    mean_by_clients: float  # every client counts the same
    mean_by_examples: float  # weighted by the clients' numbers of examples that it counts
    worst_tenth: float  # mean over the worst 10 % of the clients, rounded up
    variance: float  # of the population, in the unit squared
    jain: float  # (sum x)^2 / (n sum x^2), in [1 / n, 1]; 1 if all are equal


def spread(
    values: Sequence[float], examples: Sequence[int], *, lower_is_better: bool = False
) -> Spread:
    """Returns how a score differs between clients; see the table above.

    Args:
      values: the score of each client, at least one.
      examples: number of examples of each, above 0.
      lower_is_better: whether the worst clients are those with the largest values.

    >>> found = spread([0.5, 1.0], [30, 10])
    >>> found.mean_by_clients, found.mean_by_examples, found.worst_tenth, found.variance, found.jain
    (0.75, 0.625, 0.5, 0.0625, 0.9)
    """
    x, weights = np.asarray(values, np.float64), np.asarray(examples, np.float64)
    if not np.isfinite(x).all():
        return Spread(len(x), 0, *(float("nan"),) * 5)
    ordered = np.sort(x)[::-1] if lower_is_better else np.sort(x)
    squares = len(x) * np.square(x).sum()
    return Spread(
        clients=len(x),
        unscored=0,
        mean_by_clients=float(x.mean()),
        mean_by_examples=float((x * weights).sum() / weights.sum()),
        worst_tenth=float(ordered[: -(-len(x) // 10)].mean()),
        variance=float(x.var()),
        jain=float(np.square(x.sum()) / squares) if squares else 1.0,
    )


def spreads(
    scores: Sequence[Mapping[str, float]],
    examples: Sequence[Mapping[str, int]],
    *,
    num_clients: int,
) -> dict[str, Spread]:
    """Returns the spread of every score over the clients that have it, by name.

    Args:
      scores: of clients, by name.
      examples: number of examples that each of these scores counts.
      num_clients: of which these are the clients with any score.
    """
    found = {}
    for name in dict.fromkeys(name for own in scores for name in own):
        both = zip(scores, examples, strict=True)
        pairs = [(own[name], counts[name]) for own, counts in both if name in own]
        given = zip(*pairs, strict=True)
        one = spread(*given, lower_is_better=name in LOWER_IS_BETTER)
        found[name] = one._replace(unscored=num_clients - len(pairs))
    return found
