"""Clusters of similar rows, which stand for labels where there are none.

Needs the extra `clusters`. Everything runs on one thread, since the sums of several threads differ
in their last bits, and a row between two clusters could then change its client.
"""

import importlib.util
import warnings
from collections.abc import Sequence

import numpy as np

from fedjax_post.data.table import TokenTable

_WIDTH = 100  # features of a text, at most
_STARTS = 4  # of k-means; the best result is kept
_PIECE = 10_000  # rows that are decoded at a time


def cluster(
    features: np.ndarray,
    num_clusters: int,
    *,
    others: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the cluster of each row by k-means, and the nearest cluster of each other row.

    Args:
      features: `[num_rows, d]` float.
      num_clusters: in [1, num_rows].
      others: `[num_others, d]`, features of rows that have no part in the centres.
      seed: of the first centres.

    Returns:
      `[num_rows]` and `[num_others]` int64 in [0, num_clusters); None without other rows.

    Raises:
      ImportError: without the extra `clusters`.
      ValueError: if there are fewer different rows than clusters.
    """
    check_installed()
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    found, nearest = np.zeros(0, np.int64), None
    if num_clusters <= len(features):
        means = KMeans(num_clusters, n_init=_STARTS, random_state=seed)
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # refused below
            found = means.fit_predict(features).astype(np.int64)
            nearest = None if others is None else means.predict(others).astype(np.int64)
    if (different := len(np.unique(found))) < num_clusters:
        count = different or len(features)
        raise ValueError(
            f"clusters({num_clusters}): it finds {count} different rows; give at most as many "
            "clusters, or use another `partition`"
        )
    return found, nearest


def tfidf(
    texts: Sequence[str], others: Sequence[str] = (), *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns features of texts: TF-IDF of their words, projected and scaled to length 1.

    Words that are not in every text count as 1 + log(count), weighted by their inverse document
    frequency in `texts`. If there are more than 100, they are projected on the 100 largest singular
    components (latent semantic analysis; Deerwester et al., "Indexing by Latent Semantic Analysis",
    1990).

    Args:
      texts: of the rows that determine words, frequencies and components.
      others: further texts.
      seed: of the projection.

    Returns:
      `[len(texts), d]` and `[len(others), d]` float, d at most 100.

    Raises:
      ImportError: without the extra `clusters`.
      ValueError: if no text has a word that is not in all of them.
    """
    check_installed()
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize
    from threadpoolctl import threadpool_limits

    # Words of every row, such as those of a template, tell no row from another.
    counts = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+", max_df=max(1, len(texts) - 1))
    try:
        own = counts.fit_transform(texts)
    except ValueError:
        raise ValueError(
            f"clusters: none of the {len(texts)} rows has a word of text that is not in all of "
            "them; use another `partition`"
        ) from None
    further = counts.transform(others) if len(others) else own[:0]
    if len(counts.vocabulary_) <= _WIDTH:
        return own.toarray(), further.toarray()
    project = TruncatedSVD(min(_WIDTH, len(texts)), random_state=seed)
    with threadpool_limits(1):
        found = normalize(project.fit_transform(own))
        return found, normalize(project.transform(further)) if len(others) else found[:0]


def texts_of(table: TokenTable, tokenizer) -> list[str]:
    """Returns the text of each row, without special tokens."""
    texts: list[str] = []
    for first in range(0, len(table.length), _PIECE):
        rows = range(first, min(first + _PIECE, len(table.length)))
        places = zip(table.chunk[rows], table.start[rows], table.length[rows], strict=True)
        signed = [table.values[chunk][start : start + size] for chunk, start, size in places]
        tokens = [np.where(row < 0, ~row, row).tolist() for row in signed]
        texts += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return texts


def check_installed() -> None:
    """Raises ImportError, with the command that installs them, if the libraries are missing."""
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError(
            "clusters of texts need scikit-learn; "
            "install the extra: pip install 'fedjax_post[clusters]'"
        )
