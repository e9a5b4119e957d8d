"""UTR: rows from the changes of an adapter after one or several local steps.

Chen et al., "Reconstructing Training Data from Adapter-based Federated Large Language Models",
2026, arXiv:2601.17533. Three stages: a bag of words, from layers whose inputs are frozen; an
inversion of sentences in the low-rank subspace of the adapter's gradients; and greedy decoding from
the bag, guided by a language model.

Here: the first layer's inputs stay the same during all local steps, so that the span of the sum of
their gradients still holds the tokens' inputs; its nearest tokens are the bag. Beginnings of rows
are grown from the bag by a beam search. The score of a token is log((1 - d) / d), with d its
distance from the span at the next adapted layer, plus `prior` times its log-probability under the
public base. A token counts as evidence once: what an earlier row or place has explained only ranks
the continuations. The base alone decides where a row ends, since a last token has no gradient.

Of the paper, the abstract and the authors' code were at hand (github.com/shwksnshwowk-wq/GIA). That
code attacks another kind of adapter: bottlenecks with biases and ReLU between the layers, whose
inputs it reads from gradients of weights over those of biases. LoRA has neither, so that stages and
their purposes are the paper's and the formulas are ours. Left out: attention patterns, as evidence
of tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.attacks import evidence
from fedjax_post.attacks.attack import Attack, Guess
from fedjax_post.attacks.dager import NEAR, PLACES, distances_of, token_distances
from fedjax_post.attacks.seen import Public, Sent

_CLOSEST = 1e-6


class _Beam(NamedTuple):
    row: tuple[int, ...]
    score: float
    gained: bool = False  # whether a token in it is new


def utr(*, rows: int | None = None, words: int = 64, width: int = 16, prior: float = 0.1) -> Attack:
    """Returns the attack.

    Args:
      rows: number of rows to guess; None: batch size times local steps times clients.
      words: largest number of tokens in the bag.
      width: beginnings of rows that are kept at each length.
      prior: weight of the public base's log-probabilities, at least 0.

    Raises:
      ValueError: for numbers below 1, or a negative prior.
    """
    for name, value in (("rows", rows), ("words", words), ("width", width)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if prior < 0:
        raise ValueError(f"prior must not be negative, got {prior}")

    def invert(public: Public, sent: Sent) -> Guess:
        layers = evidence.adapted(public, sent)
        if not layers:
            return Guess((), "the message has no change of an attention's projections")
        number = rows or max(1, round(public.batch_size * sent.num_steps * len(sent.clients)))
        places = {layer: evidence.checks(sent, place) for place, layer in enumerate(layers[:2])}
        numbers = {
            f"layer_{layer}": evidence.ranks(sent, place) for place, layer in enumerate(places)
        }
        places = {layer: found for layer, found in places.items() if found}
        if not places:
            return Guess((), "the gradients of the first two adapted layers show nothing", numbers)
        bag = _bag(public, sent, places, words)
        deepest = max(places)
        gain = lambda grown: _evidence(
            distances_of(public, sent, places[deepest], rows=grown, layer=deepest)
        )
        found: list[tuple[int, ...]] = []
        for _ in range(number):
            used = frozenset(token for row in found for token in row)
            search = lambda used=used: _search(
                public, sent, bag, gain, width=width, prior=prior, used=used
            )
            new = [beam for beam in search() if beam.gained]
            if not new:
                break
            found.append(max(new, key=lambda beam: beam.score).row)
        return Guess(tuple(found), "", numbers | {"tokens": len(bag)})

    return Attack("utr", invert)


def _bag(public, sent, places, words) -> list[int]:
    """Returns the tokens nearest to the first layer's span, or all if it shows nothing.

    If some lie within it, as `dager` counts, they are all of the bag.
    """
    if 0 not in places or public.model.config.learned_positions:
        return list(range(public.model.config.vocab_size))
    far = token_distances(public, sent, places[0])
    nearest = np.argsort(far, kind="stable")[:words]
    near = nearest[far[nearest] <= NEAR]
    return (near if len(near) > 1 else nearest).tolist()


def _evidence(far: np.ndarray) -> np.ndarray:
    """Returns log((1 - d) / d): positive for what is nearer than halfway."""
    far = np.clip(far, _CLOSEST, 1 - _CLOSEST)
    return np.log1p(-far) - np.log(far)


def _search(public, sent, bag, gain, *, width, prior, used) -> list[_Beam]:
    """Returns complete rows with their scores, by a beam search; `used` tokens are no evidence."""
    bos = public.model.config.bos_id
    starts = [(token,) for token in ([bos] if bos in bag else bag)]
    beams = [_Beam(row, float(more)) for row, more in zip(starts, gain(starts), strict=True)]
    whole: list[_Beam] = []
    inner = [token for token in bag if token not in (bos, public.eos_id, public.pad_id)]
    while beams and len(beams[0].row) < public.max_length:
        beams = sorted(beams, key=lambda beam: -beam.score)[:width]
        likely = _next(public, sent, [beam.row for beam in beams], width)
        whole += [
            beam._replace(score=beam.score + prior * float(chance[public.eos_id]))
            for beam, chance in zip(beams, likely, strict=True)
            if len(beam.row) > 1
        ]
        if not inner:
            break
        pairs = [
            (beam, token, prior * float(chance[token]))
            for beam, chance in zip(beams, likely, strict=True)
            for token in inner
        ]
        added = gain([(*beam.row, token) for beam, token, _ in pairs])
        beams = [
            _longer(beam, token, expected, float(more), most=float(added.max()), used=used)
            for (beam, token, expected), more in zip(pairs, added, strict=True)
            if more > 0  # farther than halfway from the span, it is no part of a row
        ]
    return [*whole, *beams]


def _longer(beam, token, expected, more, *, most, used) -> _Beam:
    """Returns a beam with one more token, whose evidence counts if it is new."""
    is_new = token not in used and token not in beam.row
    gain = more if is_new else more - most
    return _Beam((*beam.row, token), beam.score + expected + gain, beam.gained or is_new)


def _next(public: Public, sent: Sent, rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Returns the base's log-probabilities of the next token, `[rows, V]`."""
    length = -(-len(rows[0]) // PLACES) * PLACES
    tokens = np.full((width, length), public.pad_id, np.int32)
    tokens[: len(rows), : len(rows[0])] = rows
    base = sent.start if "params" in sent.start else {}
    logits = public.model.logits(base, jnp.asarray(tokens))[: len(rows), len(rows[0]) - 1]
    return np.asarray(jax.nn.log_softmax(logits))
