"""DAGER: exact rows from a gradient, token by token, by what lies in its span.

Petrov, Dimitrov, Baader, Mueller, Vechev, "DAGER: Exact Gradient Inversion for Large Language
Models", NeurIPS 2024, arXiv:2405.15586; the variant for decoders. A token is in the batch if and
only if its input to the first attention lies in the span of that layer's gradient; the beginning of
a row is in the batch if and only if its input to the second attention does. Rows are grown from
their first token by all tokens that pass the first check, as long as the second check passes.

It is exact for one step of SGD, whose change is a multiple of the gradient. The first layer's
inputs do not depend on what is trained unless the embeddings are, so its check also holds for the
sum of several steps.

Deviations: the gradients of queries, keys and values are used together, where the paper uses the
queries', because ranks then add up and a row's first token has no query gradient; the noise of
float32 weights sets the rank, in place of a tolerance for each batch size; a first token that
begins every row is not looked for inside a row; a row that begins with one token twice is not
found, since its first two beginnings have the same inputs; the last token of a row is never an
input with a gradient and is left out; rows that nearly pass are not proposed.
"""

from collections.abc import Sequence

import numpy as np

from fedjax_post.attacks import evidence
from fedjax_post.attacks.attack import Attack, Guess
from fedjax_post.attacks.evidence import Check
from fedjax_post.attacks.layers import inputs_of
from fedjax_post.attacks.seen import Public, Sent

# Largest distance of a token from the first layer's span; tokens are far apart, so it is generous
NEAR = 0.02
_SIZES = (32, 128, 512)  # numbers of beginnings that are computed together
PLACES = 8  # their lengths are multiples of this; both keep programs and padding few


def dager(
    *, token_threshold: float = NEAR, threshold: float = 1e-3, max_beginnings: int = 2048
) -> Attack:
    """Returns the attack.

    Args:
      token_threshold: largest distance of a token from the first layer's span, where 1 is that of
        a vector of any direction; tokens are far apart, so that it may be generous.
      threshold: the same for the beginning of a row, at the second layer.
      max_beginnings: of rows that are grown at the same time; with more it stops.

    Raises:
      ValueError: for a threshold outside (0, 1), or numbers below 1.
    """
    for name, value in (("token_threshold", token_threshold), ("threshold", threshold)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1), got {value}")
    if max_beginnings < 1:
        raise ValueError(f"max_beginnings must be at least 1, got {max_beginnings}")

    def invert(public: Public, sent: Sent) -> Guess:
        layers = evidence.adapted(public, sent)
        if not layers:
            return Guess((), "the message has no change of an attention's projections")
        tokens, why, numbers = find_tokens(public, sent, threshold=token_threshold)
        place = 1 if layers[0] == 0 else 0
        if why:
            return Guess((), why, numbers)
        if place >= len(layers):
            return Guess((), "the message has only the first layer: tokens without order", numbers)
        found = evidence.checks(sent, place)
        numbers |= {f"layer_{layers[place]}": evidence.ranks(sent, place)}
        if not found:
            return Guess((), _spans_all(layers[place], "beginnings of rows"), numbers)
        passes = lambda rows: (
            distances_of(public, sent, found, rows=rows, layer=layers[place]) <= threshold
        )
        rows, why = _grow(public, tokens, passes, max_beginnings)
        return Guess(tuple(rows), why, numbers)

    return Attack("dager", invert)


def find_tokens(public: Public, sent: Sent, *, threshold: float) -> tuple[np.ndarray, str, dict]:
    """Returns the tokens that pass the first layer's check, why there are none, and the numbers.

    All tokens pass if the first layer was not trained, or adds positions to the tokens.

    Args:
      public: of the run.
      sent: a change.
      threshold: largest distance.
    """
    every = np.arange(public.model.config.vocab_size)
    if evidence.adapted(public, sent)[0] > 0 or public.model.config.learned_positions:
        return every, "", {}
    found, numbers = evidence.checks(sent, 0), {"layer_0": evidence.ranks(sent, 0)}
    if not found:
        return every[:0], _spans_all(0, "tokens"), numbers
    tokens = np.flatnonzero(token_distances(public, sent, found) <= threshold)
    why = "" if len(tokens) else "no token lies in the span of the first layer's gradient"
    return tokens, why, numbers | {"tokens": len(tokens)}


def token_distances(public: Public, sent: Sent, found: Sequence[Check]) -> np.ndarray:
    """Returns the distance of every token of the vocabulary at the first layer, `[V]`.

    Args:
      public: of the run.
      sent: a change.
      found: the first layer's checks.
    """
    every = np.arange(public.model.config.vocab_size)
    inputs = inputs_of(public.model, sent.start, every[:, None], 0)[:, 0]
    return evidence.distance(found, inputs)


def distances_of(
    public: Public,
    sent: Sent,
    found: Sequence[Check],
    *,
    rows: Sequence[Sequence[int]],
    layer: int,
) -> np.ndarray:
    """Returns the distance of the last token of each row, `[rows]`, at a layer.

    Args:
      public: of the run.
      sent: a change.
      found: the layer's checks.
      rows: of one length, from their first token.
      layer: from 0.
    """
    length, out = len(rows[0]), []
    width = -(-length // PLACES) * PLACES  # attention is causal
    at_once = next((size for size in _SIZES if len(rows) <= 4 * size), _SIZES[-1])
    for first in range(0, len(rows), at_once):
        part = np.asarray(rows[first : first + at_once], np.int32)
        padded = np.zeros((at_once, width), np.int32)
        padded[: len(part), :length] = part
        inputs = inputs_of(public.model, sent.start, padded, layer)[: len(part), length - 1]
        out.append(evidence.distance(found, inputs))
    return np.concatenate(out)


def _grow(public, tokens, passes, most):
    """Returns the rows that cannot be continued, and why it stopped early."""
    bos = public.model.config.bos_id
    starts = [bos] if bos in tokens else tokens.tolist()
    inner = [token for token in tokens.tolist() if token != bos]
    growing: list[tuple[int, ...]] = [(token,) for token in starts]
    whole: list[tuple[int, ...]] = []
    growing = [row for row, ok in zip(growing, passes(growing), strict=True) if ok]
    if not growing:
        return [], "no first token passes the check of the second layer"
    while growing:
        if len(growing) > most or len(growing[0]) >= public.max_length:
            full = f"more than {most} beginnings pass; the check distinguishes too little"
            return [*whole, *growing[:most]], full if len(growing) > most else ""
        # A token repeated from the start on has the same inputs everywhere, so it always passes
        longer = [(*row, token) for row in growing for token in inner if {*row} != {token}]
        kept = [row for row, ok in zip(longer, passes(longer), strict=True) if ok]
        continued = {row[:-1] for row in kept}
        whole += [row for row in growing if row not in continued and len(row) > 1]
        growing = kept
    return whole, "" if whole else "no row could be grown beyond its first token"


def _spans_all(layer: int, what: str) -> str:
    return (
        f"the gradient of layer {layer} is 0 or spans everything: there are at least as many "
        f"different {what} as its rank can tell apart"
    )
