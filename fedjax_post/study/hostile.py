"""Hostile clients of an experiment: who they are, what they do, and what a rule tolerates."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_post import attacks
from fedjax_post.attacks.hostile_rows import place_of
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.data.load import Loaded
from fedjax_post.evaluate.generation import reference_answers
from fedjax_post.evaluate.heldout import HeldOut
from fedjax_post.study.calls import Factories, parse
from fedjax_post.study.rows import cohort_size
from fedjax_post.study.spec import Spec

_USUAL_SHARE = 0.2


class Backdoor(NamedTuple):
    """A trigger in the prompt and the answer to it, as texts."""

    trigger: str
    target: str


class FlippedLabels(NamedTuple):
    """Rows of hostile clients have the next label."""


class Planted(NamedTuple):
    """A backdoor in tokens."""

    trigger: tuple[int, ...]
    target: tuple[int, ...]  # with the token that ends a response
    place: int  # number of tokens of a prompt before the trigger


class Poisoned(NamedTuple):
    """The hostile clients of a run, and what shows their success."""

    hostile: np.ndarray  # [population], bool
    planted: Planted | None = None  # None without a backdoor
    heldout: HeldOut | None = None  # rows with the trigger and the target; None without a backdoor


ON_VALUES: Factories = {
    "sign_flip": attacks.sign_flip,
    "scaled": attacks.scaled,
    "little_is_enough": attacks.little_is_enough,
}
ON_ROWS: Factories = {"flip_labels": FlippedLabels, "backdoor": Backdoor}
# rule -> of its arguments, a function from the clients of a round to the hostile ones among them
# that it tolerates; see the tables of `core.robust` and `adapters.robust`
_TOLERATED: Factories = {
    "coordinate_median": lambda: lambda n: (n - 1) // 2,
    "trimmed_mean": lambda fraction: lambda n: math.floor(fraction * n * (1 + 1e-12)),
    "krum": lambda num_hostile: lambda n: num_hostile if n >= 2 * num_hostile + 3 else 0,
    "multi_krum": lambda num_hostile, num_kept: _TOLERATED["krum"](num_hostile),
    "geometric_median": lambda **smoothing: lambda n: (n - 1) // 2,
    "norm_bounded": lambda max_norm, inner=None: inner or (lambda n: 0),
}


def check(spec: Spec) -> None:
    """Checks that hostile clients are possible with these fields, before anything is read.

    Raises:
      ValueError: naming the field and the remedy.
    """
    if not spec.poison.attack:
        if (share := spec.poison.share) is not None:
            raise ValueError(f"poison_share={share:g} needs `poison`, what hostile clients do")
        return
    field = f"poison={spec.poison.attack}"
    if spec.method.baseline != "none":
        raise ValueError(f"{field}: baseline={spec.method.baseline} has no cohort; leave one out")
    on_values, on_rows = _parsed(spec)
    if on_rows and spec.objective.name == "dpo":
        raise ValueError(
            f"{field} changes responses, and rows of objective=dpo have two; use sign_flip, "
            "scaled or little_is_enough"
        )
    if on_values and spec.privacy.secure:
        raise ValueError(
            f"{field}: uploads are masked, and what is changed then cannot be opened; use "
            "flip_labels or backdoor, or leave `secure` out"
        )


def on_rows(
    spec: Spec, data: Loaded, tokenizer: Any, *, room: int
) -> tuple[Loaded, Poisoned | None]:
    """Returns the data with the rows of hostile clients changed, and who these clients are.

    Args:
      spec: the experiment.
      data: of `rows.load_data`.
      tokenizer: of the target.
      room: tokens that a row may take in the model's context.

    Raises:
      ValueError: if the share is nobody, the rows do not suit the attack, or a trigger makes them
        too long.
    """
    if not spec.poison.attack:
        return data, None
    try:
        share = spec.poison.share or _USUAL_SHARE
        hostile = attacks.hostile_clients(len(data.clients), share, seed=spec.seed)
    except ValueError as error:
        raise ValueError(f"poison_{error}") from error
    poisoned = Poisoned(hostile)
    try:
        for attack in _parsed(spec)[1]:
            if isinstance(attack, FlippedLabels):
                clients = attacks.flip_labels(data.clients, hostile=hostile)
            else:
                planted = _planted(attack, data, tokenizer)
                clients = attacks.plant_backdoor(
                    data.clients, hostile=hostile, seed=spec.seed, **planted._asdict()
                )
                poisoned = poisoned._replace(planted=planted)
            longest = clients.table.max_length
            if longest > room:
                raise ValueError(
                    f"rows with the trigger have up to {longest} tokens, and the model's context "
                    f"has room for {room}; give a shorter trigger, or a lower `max_length`"
                )
            report = {**data.report, "max_length": longest}
            data = data._replace(clients=clients, report=report)
    except ValueError as error:
        raise ValueError(f"poison={spec.poison.attack}: {error}") from error
    return data, poisoned


def around(algorithm: Algorithm, spec: Spec, poisoned: Poisoned | None) -> Algorithm:
    """Returns the algorithm, with hostile clients that change what they send, if there are any.

    Args:
      algorithm: with all that goes around it.
      spec: the experiment.
      poisoned: of `on_rows`.

    Raises:
      ValueError: for algorithms whose values cannot be changed in this way, naming the field.
    """
    if poisoned is None:
        return algorithm
    try:
        for attack in _parsed(spec)[0]:
            algorithm = attacks.poisoned(algorithm, attack, hostile=poisoned.hostile)
    except ValueError as error:
        raise ValueError(f"poison={spec.poison.attack}: {error}") from error
    return algorithm


def add_heldout(poisoned: Poisoned | None, heldout: HeldOut) -> Poisoned | None:
    """Returns the hostile clients with the held-out rows that show whether a backdoor works."""
    if poisoned is None or poisoned.planted is None:
        return poisoned
    table = attacks.with_trigger(heldout.table, heldout.rows, **poisoned.planted._asdict())
    triggered = heldout._replace(
        table=table._replace(label=None),
        rows=np.arange(len(table.length)),
        exact_match=True,
        rejected=None,
        choices=None,
        longest=None,
        prefix=(),
    )
    if heldout.labels:  # the target may be none of them
        target = reference_answers(triggered)[0].strip()
        triggered = triggered._replace(labels=tuple(dict.fromkeys((*heldout.labels, target))))
    return poisoned._replace(heldout=triggered)


def tolerated(aggregate: str | None, num_clients: int) -> int:
    """Returns how many hostile clients of a round a rule tolerates; 0 for a mean.

    >>> tolerated("krum(2)", 16), tolerated("trimmed_mean(0.2)", 16), tolerated(None, 16)
    (2, 3, 0)

    Args:
      aggregate: the rule as text, or None.
      num_clients: of the round.
    """
    return parse(aggregate, _TOLERATED)[0](num_clients) if aggregate else 0


def describe(poisoned: Poisoned, spec: Spec) -> str:
    """Returns who is hostile, and what the rule tolerates, as one line of text."""
    population, count = len(poisoned.hostile), int(poisoned.hostile.sum())
    size = cohort_size(spec, population)
    rule = spec.method.aggregate
    most = tolerated(rule, size)
    chance = _chance_of_more(most, size, count, population)
    return (
        f"{count:,} of {population:,} clients: {spec.poison.attack}; on average "
        f"{size * count / population:.3g} of {size} in a round. {rule or 'a mean'} tolerates "
        f"{most}; more are drawn in about {100 * chance:.0f} % of rounds"
    )


def poison_summary(poisoned: Poisoned | None, spec: Spec) -> dict[str, Any] | None:
    """Returns the entry `poison` of a summary; None without hostile clients.

    Args:
      poisoned: of the run.
      spec: the experiment, with every default filled in.
    """
    if poisoned is None:
        return None
    size = cohort_size(spec, len(poisoned.hostile))
    return {
        "attack": spec.poison.attack,
        "clients": np.flatnonzero(poisoned.hostile).tolist(),
        "share": float(poisoned.hostile.mean()),
        "cohort_size": size,
        "tolerated": tolerated(spec.method.aggregate, size),
    }


def _parsed(spec: Spec) -> tuple[list[Any], list[Any]]:
    """Returns the attacks on values and those on rows, at most one of each."""
    text = spec.poison.attack
    try:
        found = parse(text, {**ON_VALUES, **ON_ROWS})
    except ValueError as error:
        raise ValueError(f"poison={text}: {error}") from error
    on_values = [each for each in found if isinstance(each, attacks.Tampering)]
    on_rows = [each for each in found if isinstance(each, Backdoor | FlippedLabels)]
    if len(on_values) > 1 or len(on_rows) > 1 or len(on_values + on_rows) < len(found):
        raise ValueError(
            f"poison={text}: give at most one of {', '.join(ON_VALUES)} and one of "
            f"{', '.join(ON_ROWS)}"
        )
    return on_values, on_rows


def _planted(backdoor: Backdoor, data: Loaded, tokenizer: Any) -> Planted:
    """Returns a backdoor in tokens."""
    encode: Callable = lambda text: tokenizer.encode(str(text), add_special_tokens=False)
    trigger = encode(backdoor.trigger)
    if not trigger or not encode(backdoor.target):
        raise ValueError("a backdoor needs a trigger and a target that are not empty")
    assert data.heldout is not None  # guaranteed by `load_data`
    place = place_of([data.heldout, data.clients.table])
    target = (*encode(backdoor.target), tokenizer.eos_token_id)
    return Planted(tuple(trigger), target, place)


def _chance_of_more(most: int, size: int, hostile: int, population: int) -> float:
    """Returns the probability that a cohort drawn without replacement has more than `most`."""
    ways = lambda n, k: math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    least = max(0, size - (population - hostile))
    chances = [
        math.exp(ways(hostile, k) + ways(population - hostile, size - k) - ways(population, size))
        for k in range(least, min(most, hostile, size) + 1)
    ]
    return max(0.0, 1 - sum(chances))
