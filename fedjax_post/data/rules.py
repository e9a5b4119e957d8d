"""Rules by which rows are divided among clients, as values: `Population(partition=shards(2))`.

| rule | groups of rows | clients | source |
| --- | --- | --- | --- |
| `natural` | the column of clients | those of the data set | |
| `iid` | none | equal in size and content | |
| `quantity(law, skew)` | none | sizes by a law, see `sizes` | Li et al. 2020 |
| `dirichlet(alpha)` | labels | own mixture of labels, equal sizes | Hsu et al. 2019 |
| `shards(per_client)` | labels | a few runs of sorted rows | McMahan et al. 2017 |
| `language` | the column of languages | rows of one language each | |
| `length(skew)` | lengths in tokens | short rows or long rows, equal sizes | |
| `clusters(num_clusters, alpha)` | clusters of similar texts | as `dirichlet` | Lin et al. 2022 |

A specification writes them in the same form. The rule that divides the rows to train on also
divides the held-out rows: a client receives a part of each group as large as its part of the
training rows of that group, see `alike`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from fedjax_post.data import label_skew, lengths, partition, sizes
from fedjax_post.data.partition import Partition
from fedjax_post.data.table import TokenTable

# (groups [num_rows], number of clients or None, seed) -> partition
Divide = Callable[[np.ndarray, int | None, int], Partition]
FeaturesFn = Callable[[TokenTable], np.ndarray]  # rows -> [num_rows, d]


class Rule(NamedTuple):
    """How rows are divided among clients."""

    name: str
    text: str  # the rule with its settings, as it is reported
    by: str | None  # groups of rows: label, language, client, length or clusters; None: one group
    divide: Divide | None  # None: each client holds one group
    needs_number: bool = True  # whether the number of clients has to be given
    num_clusters: int = 0  # of rows that are alike, if they are grouped by clusters
    features: FeaturesFn | None = None  # that make rows alike; None: TF-IDF of their texts


def natural() -> Rule:
    """Returns the rule by which the data set's own clients hold their rows."""
    return Rule("natural", "natural", "client", None, needs_number=False)


def iid() -> Rule:
    """Returns the rule of equal, random shares."""
    divide: Divide = lambda groups, num_clients, seed: partition.iid(
        len(groups), _number(num_clients), seed=seed
    )
    return Rule("iid", "iid", None, divide)


def quantity(law: str = "lognormal", skew: float | None = None) -> Rule:
    """Returns the rule of random shares whose sizes follow a law; see `sizes.quantity`.

    Args:
      law: one of `sizes.LAWS`.
      skew: of the law; None for 1.

    Raises:
      ValueError: for an unknown law, a negative skew, or a skew of `poisson`, which has none.
    """
    if law == "poisson" and skew is not None:
        raise ValueError(f"skew is {skew}, but poisson has none; leave it out")
    skew = 1.0 if skew is None else skew
    sizes.check_law(law, skew)
    divide: Divide = lambda groups, num_clients, seed: sizes.quantity(
        len(groups), _number(num_clients), law=law, skew=skew, seed=seed
    )
    text = law if law == "poisson" else f"{law}, {skew:g}"
    return Rule("quantity", f"quantity({text})", None, divide)


def dirichlet(alpha: float = 0.3) -> Rule:
    """Returns the rule of mixtures of labels; see `label_skew.dirichlet`.

    Raises:
      ValueError: if `alpha` is not positive and finite.
    """
    return Rule("dirichlet", f"dirichlet({alpha:g})", "label", _dirichlet(alpha))


def shards(per_client: int = 2) -> Rule:
    """Returns the rule of runs of rows sorted by label; see `label_skew.shards`.

    Raises:
      ValueError: if `per_client` is not a whole number of at least 1.
    """
    label_skew.check_per_client(per_client)
    divide: Divide = lambda groups, num_clients, seed: label_skew.shards(
        groups, _number(num_clients), per_client=per_client, seed=seed
    )
    return Rule("shards", f"shards({per_client})", "label", divide)


def language() -> Rule:
    """Returns the rule of one language a client; see `label_skew.single_label`.

    Without a number of clients there is one client for each language.
    """
    divide: Divide = lambda groups, num_clients, seed: label_skew.single_label(
        groups, num_clients, seed=seed
    )
    return Rule("language", "language", "language", divide, needs_number=False)


def length(skew: float = 1.0) -> Rule:
    """Returns the rule of short and long rows; see `lengths.by_length`.

    Raises:
      ValueError: if `skew` is outside [0, 1].
    """
    lengths.check_skew(skew)
    divide: Divide = lambda groups, num_clients, seed: lengths.by_length(
        groups, _number(num_clients), skew=skew, seed=seed
    )
    return Rule("length", f"length({skew:g})", "length", divide)


def clusters(
    num_clusters: int = 10, alpha: float = 0.3, features: FeaturesFn | None = None
) -> Rule:
    """Returns the rule of mixtures of clusters of similar texts, which needs no labels.

    Lin et al., "FedNLP: Benchmarking Federated Learning Methods for Natural Language Processing
    Tasks", Findings of NAACL 2022, arXiv:2104.08815: k-means over features of the texts (there,
    embeddings of sentences), then `dirichlet` with the clusters as labels.

    Args:
      num_clusters: at least 2.
      alpha: concentration of `dirichlet`.
      features: rows -> `[num_rows, d]`; None for TF-IDF of their texts, see `clusters.tfidf`. In
        a specification, `embeddings` stands for the mean of the base's embeddings over the tokens.

    Raises:
      ValueError: for arguments out of range.
    """
    if not isinstance(num_clusters, int) or num_clusters < 2:
        raise ValueError(f"num_clusters must be a whole number of at least 2, got {num_clusters}")
    return Rule(
        "clusters",
        f"clusters({num_clusters}, {alpha:g})",
        "clusters",
        _dirichlet(alpha),
        num_clusters=num_clusters,
        features=features,
    )


# Names in a specification
RULES: Mapping[str, Callable[..., Rule]] = {
    "natural": natural,
    "iid": iid,
    "dirichlet": dirichlet,
    "quantity": quantity,
    "shards": shards,
    "language": language,
    "length": length,
    "clusters": clusters,
}


def _dirichlet(alpha: float) -> Divide:
    label_skew.check_alpha(alpha)
    return lambda groups, num_clients, seed: label_skew.dirichlet(
        groups, _number(num_clients), alpha=alpha, seed=seed
    )


def _number(num_clients: int | None) -> int:
    assert num_clients is not None  # `needs_number`
    return num_clients
