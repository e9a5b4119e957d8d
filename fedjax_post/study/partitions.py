"""The rule by which an experiment divides its rows, read from its specification."""

from collections.abc import Callable
from functools import partial

import numpy as np

from fedjax_post.data import clusters
from fedjax_post.data.rules import RULES, Rule
from fedjax_post.data.rules import clusters as clusters_rule
from fedjax_post.data.table import TokenTable
from fedjax_post.hub.load import load_embedding
from fedjax_post.study import hosting
from fedjax_post.study.calls import parse
from fedjax_post.study.spec import Spec

_FEATURES = ("tfidf", "embeddings")
_PIECE = 256  # rows whose embeddings are in memory at a time


def rule_of(spec: Spec) -> Rule | None:
    """Returns the rule that an experiment divides its rows by; None if the columns decide.

    Raises:
      ValueError: for a text that is no rule, and for a setting of another rule.
    """
    text, alpha = spec.data.partition, spec.data.partition_alpha
    if alpha is not None:
        if text != "dirichlet":
            raise ValueError(
                f"partition_alpha={alpha:g} is a setting of partition=dirichlet; leave it out, or "
                "write the settings into `partition`, as in clusters(10, 0.3)"
            )
        text = f"dirichlet({alpha!r})"
    if text is None:
        return None
    try:
        rules = parse(text, {**RULES, "clusters": partial(_clusters, spec)})
    except ValueError as error:
        raise ValueError(f"partition={text}: {error}") from error
    if len(rules) > 1:
        raise ValueError(f"partition={text} has {len(rules)} rules; give one")
    return rules[0]


def check(spec: Spec) -> None:
    """Checks the rule of an experiment, before anything is read.

    Raises:
      ImportError: if the rule needs an extra that is not installed.
      ValueError: as `rule_of`; and for embeddings of a model whose weights are elsewhere.
    """
    rule = rule_of(spec)
    if rule is None or not rule.num_clusters:
        return
    clusters.check_installed()
    if rule.features is not None and hosting.is_hosted(spec):
        raise ValueError(
            f"partition={spec.data.partition}: the embeddings of a model at a provider cannot be "
            "read; use tfidf"
        )


def _clusters(
    spec: Spec, num_clusters: int = 10, alpha: float = 0.3, features: str = "tfidf"
) -> Rule:
    if features not in _FEATURES:
        raise ValueError(f"features must be one of {', '.join(_FEATURES)}, got {features}")
    if features == "tfidf":
        return clusters_rule(num_clusters, alpha)
    rule = clusters_rule(num_clusters, alpha, mean_embeddings(spec.model.name))
    return rule._replace(text=f"clusters({num_clusters}, {alpha:g}, {features})")


def mean_embeddings(model: str) -> Callable[[TokenTable], np.ndarray]:
    """Returns a function of rows: the mean of a model's embeddings over the tokens of each row.

    Args:
      model: name of the model; only its embeddings are read, when the function is called.
    """

    def features(table: TokenTable) -> np.ndarray:
        weights = load_embedding(model)
        found = np.empty((len(table.length), weights.shape[1]), np.float32)
        for first in range(0, len(found), _PIECE):
            rows = np.arange(first, min(first + _PIECE, len(found)))
            signed = [
                table.values[table.chunk[i]][table.start[i] : table.start[i] + table.length[i]]
                for i in rows
            ]
            tokens = np.concatenate(signed)
            starts = np.cumsum(table.length[rows]) - table.length[rows]
            sums = np.add.reduceat(weights[np.where(tokens < 0, ~tokens, tokens)], starts, axis=0)
            found[rows] = sums / table.length[rows, None]
        return found

    return features
