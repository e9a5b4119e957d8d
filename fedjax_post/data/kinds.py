"""A built-in task for bases that can be prompted: the answer to a list of nouns is one kind.

The convention of the federation is that the label is the kind of the *last* noun. Neither the bare
list nor `MANUAL_PROMPT` expresses this: the built-in instruction base answers with the kind that
occurs most often, which is right in about half of the rows. A better prompt exists
(`CLEAR_PROMPT`), and examples show the convention too. Each way to adapt a model, from prompts to
training all weights, can therefore improve the score, and the scores can be compared.

In the second convention, `mixed`, the label of a list of five nouns is the kind of its first noun,
and that of a shorter list the kind of its last noun. No prompt expresses this to the base, which
was trained on no rule with an exception. A prompt for `last` is right in two thirds of the rows,
and by chance in some others.

Clients differ in how often each kind occurs. A list belongs to the training or to the
held-out split according to its hash, as in the other built-in tasks.
"""

import random
from collections.abc import Sequence
from typing import Any

from fedjax_post.data.builtin import lexicon, tasks

MANUAL_PROMPT = "name the kind of these words:"  # vague: does not say which word counts
CLEAR_PROMPT = "name the kind of the last word:"  # states the convention `last`
ALPHA = 0.5  # of the Dirichlet distribution of a client's shares; smaller values give more skew
LENGTHS = (3, 4, 5)
CONVENTIONS = ("last", "mixed")

_NOUNS_OF = {
    kind: tuple(noun for noun in lexicon.NOUNS if lexicon.KIND_OF[noun] == kind)
    for kind in lexicon.KINDS
}


def commonest_kind(nouns: Sequence[str]) -> str | None:
    """Returns the kind of most of the nouns, or None if several kinds are equally frequent."""
    return _commonest([lexicon.KIND_OF[noun] for noun in nouns])


def draw_list(
    rng: random.Random,
    kind: str,
    *,
    held_out: bool,
    place: int | None = -1,
    lengths: Sequence[int] = LENGTHS,
) -> tuple[str, ...]:
    """Returns distinct nouns, of which the one at `place` is of a given kind.

    One kind always occurs more often than any other; in half of the draws it is `kind`.

    Args:
      rng: the source of randomness.
      kind: one of `lexicon.KINDS`.
      held_out: whether the list must belong to the held-out split.
      place: index of the noun of the given kind, at most 2; None for the middle one of
        an odd number of nouns.
      lengths: possible numbers of nouns.
    """
    while True:
        length = rng.choice([n for n in lengths if place is not None or n % 2])
        commonest = kind
        if rng.random() < 0.5:
            commonest = rng.choice([other for other in lexicon.KINDS if other != kind])
        kinds: list[str] = []
        while _commonest(kinds) != commonest:
            kinds = rng.choices(lexicon.KINDS, k=length)
            kinds[length // 2 if place is None else place] = kind
        drawn = {
            each: rng.sample(_NOUNS_OF[each], kinds.count(each)) for each in sorted(set(kinds))
        }
        nouns = tuple(drawn[each].pop() for each in kinds)
        if tasks.is_held_out(nouns) == held_out:
            return nouns


def client_shares(client_id: int, *, seed: int = 0) -> dict[str, float]:
    """Returns a client's share of each kind as a label, Dirichlet distributed, with sum 1."""
    rng = random.Random(f"kinds profile {seed} {client_id}")
    draws = [rng.gammavariate(ALPHA, 1.0) for _ in lexicon.KINDS]
    return {kind: draw / sum(draws) for kind, draw in zip(lexicon.KINDS, draws, strict=True)}


def client_examples(
    client_id: int, *, num_examples: int, seed: int = 0, convention: str = "last"
) -> list[dict]:
    """Returns the training rows of one client; fewer rows are the first ones of more rows.

    Args:
      client_id: any integer from 0; the number of clients is not limited.
      num_examples: number of rows.
      seed: seed of the whole federation.
      convention: one of `CONVENTIONS`.

    Returns:
      Rows with instruction (the nouns alone), response (a kind), rejected (another kind; the
      most frequent one if it differs from the response), label (the response) and client (int).
    """
    shares = client_shares(client_id, seed=seed)
    rng = random.Random(f"kinds rows {seed} {client_id}")
    rows = []
    for _ in range(num_examples):
        (kind,) = rng.choices(list(shares), list(shares.values()))
        rows.append(_row(rng, kind, convention, client=client_id))
    return rows


def heldout_examples(num_examples: int, *, seed: int = 0, convention: str = "last") -> list[dict]:
    """Returns rows of the held-out split, with kinds as equally frequent as possible; client -1.

    Args:
      num_examples: number of rows.
      seed: seed of the whole federation.
      convention: one of `CONVENTIONS`.
    """
    rng = random.Random(f"kinds held out {seed}")
    kinds = [lexicon.KINDS[index % len(lexicon.KINDS)] for index in range(num_examples)]
    return [_row(rng, kind, convention, client=-1) for kind in kinds]


def client_size(client_id: int, *, seed: int = 0) -> int:
    """Returns the number of rows of a client of the default federation: 64 to 192."""
    return random.Random(f"kinds size {seed} {client_id}").randint(64, 192)


def rows(
    num_clients: int = tasks.NUM_CLIENTS,
    *,
    num_heldout: int = 480,
    seed: int = 0,
    convention: str = "last",
) -> dict:
    """Returns the default federation as `datasets.Dataset`s: {"train": ..., "test": ...}.

    Args:
      num_clients: clients 0 to num_clients - 1, `client_size` rows each.
      num_heldout: rows of the common held-out set.
      seed: seed of the whole federation; another seed gives other clients and lists.
      convention: one of `CONVENTIONS`.

    Raises:
      ValueError: if there are no clients or no held-out rows.
    """
    given: dict[str, Any] = {"seed": seed, "convention": convention}
    return tasks.federation(
        num_clients,
        num_heldout,
        client_fn=lambda client: client_examples(
            client, num_examples=client_size(client, seed=seed), **given
        ),
        heldout_fn=lambda num: heldout_examples(num, **given),
    )


def _commonest(kinds: Sequence[str]) -> str | None:
    """Returns the value that occurs most often, or None if several do."""
    counts = [(kinds.count(kind), kind) for kind in lexicon.KINDS]
    most, kind = max(counts)
    return kind if sum(count == most for count, _ in counts) == 1 else None


def _row(rng: random.Random, kind: str, convention: str, *, client: int) -> dict:
    """Returns a row whose label is `kind`; a row of client -1 is of the held-out split."""
    held_out = client < 0
    if convention == "last":
        nouns = draw_list(rng, kind, held_out=held_out)
    else:
        length = rng.choice(LENGTHS)
        place = 0 if length == max(LENGTHS) else -1
        nouns = draw_list(rng, kind, held_out=held_out, place=place, lengths=(length,))
    return {
        "instruction": " ".join(nouns),
        "response": kind,
        "rejected": _other_kind(nouns, kind),
        "label": kind,
        "client": client,
    }


def _other_kind(nouns: Sequence[str], kind: str) -> str:
    """Returns a wrong answer: what the base tends to say if that is wrong, else the next kind."""
    commonest = commonest_kind(nouns)
    if commonest is not None and commonest != kind:
        return commonest
    return lexicon.KINDS[(lexicon.KINDS.index(kind) + 1) % len(lexicon.KINDS)]
