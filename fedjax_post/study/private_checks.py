"""What differential privacy asks of an experiment, checked before anything is computed."""

import dataclasses
import unicodedata
from typing import Any

from fedjax_post.data.load import Loaded
from fedjax_post.study.running import Privacy
from fedjax_post.study.spec import Spec

_SECURE = ("secure", "secure_threshold")
# Fields of noise that the server adds to a mean
_OF_SERVER = ("clip_quantile", "bands", "noise_cohort", "noise_population")


def is_on(spec: Spec) -> bool:
    """Returns whether the run is private."""
    return spec.privacy.epsilon is not None or spec.privacy.noise_multiplier is not None


def check(spec: Spec) -> None:
    """Checks that a guarantee is possible with these fields, before anything is read.

    Raises:
      ValueError: naming the field and the remedy.
    """
    if spec.training.sampling == "cyclic" and not spec.privacy.bands:
        raise ValueError(
            "sampling=cyclic draws from one group of clients after another, and "
            "`privacy.bands` is their number; give both"
        )
    given = _given(spec)
    if not given:
        return
    name, value = next(iter(given.items()))
    field = f"privacy.{name}={value:g}" if not isinstance(value, str) else f"privacy.{name}={value}"
    if not is_on(spec):
        raise ValueError(f"{field} needs `privacy.epsilon` or `privacy.noise_multiplier`")
    if len(given.keys() & {"epsilon", "noise_multiplier"}) == 2:
        raise ValueError(
            f"{field} and privacy.noise_multiplier={spec.privacy.noise_multiplier:g} both set the "
            "noise; give one"
        )
    if not spec.privacy.clip:
        raise ValueError(f"{field} needs `privacy.clip`, the maximum norm of a client's message")
    _check_method(spec, field)
    _check_place(spec, given)
    _check_drawn(spec, field)


def _given(spec: Spec) -> dict[str, Any]:
    """Returns the fields of differential privacy that differ from their defaults."""
    own, usual = dataclasses.asdict(spec.privacy), dataclasses.asdict(Privacy())
    return {name: x for name, x in own.items() if x != usual[name] and name not in _SECURE}


def _check_method(spec: Spec, field: str) -> None:
    if spec.method.baseline != "none":
        raise ValueError(f"{field}: baseline={spec.method.baseline} has no cohorts; leave one out")
    if spec.training.buffer_size is not None:
        raise ValueError(
            f"{field}: privacy accounting needs synchronous rounds; leave `buffer_size` out"
        )
    if spec.method.aggregate and spec.privacy.noise_at == "server":
        raise ValueError(
            f"{field}: the noise is calibrated for a mean, and "
            f"aggregate={spec.method.aggregate} is another rule; leave one out"
        )
    if spec.method.client_weight not in (None, "uniform"):
        raise ValueError(
            f"{field}: all clients must have weight 1, and "
            f"client_weight={spec.method.client_weight} gives others; leave it out"
        )
    if spec.privacy.noise_at != "step":
        return
    if spec.objective.name == "grpo":
        raise ValueError(
            f"{field}: noise_at=step hides single rows, and objective=grpo samples answers to "
            "them; use noise_at=server"
        )
    if spec.data.pack_length:
        raise ValueError(
            f"{field}: noise_at=step hides single rows, and pack_length={spec.data.pack_length} "
            "puts several into one; leave it out"
        )


def _check_place(spec: Spec, given: dict[str, Any]) -> None:
    """Raises ValueError for fields of the server's noise where clients add it."""
    where = f"noise_at={spec.privacy.noise_at}"
    if spec.privacy.secure and spec.privacy.noise_at != "server":
        raise ValueError(
            f"{where}: under `privacy.secure` clients add shares of the noise of a sum; leave "
            "one of them out"
        )
    if spec.privacy.noise_at == "server" and not spec.privacy.secure:
        return
    if spec.privacy.secure:
        where = "`privacy.secure`"
    for name in _OF_SERVER:
        if name in given:
            raise ValueError(
                f"privacy.{name}={given[name]:g} is of noise that the server adds, and with "
                f"{where} the clients do; leave one out"
            )


def _check_drawn(spec: Spec, field: str) -> None:
    """Raises ValueError where the clients are not drawn as the account assumes."""
    given = spec.privacy
    if given.bands and spec.training.sampling != "cyclic":
        raise ValueError(
            f"privacy.bands={given.bands}: clients must rest for as many rounds, and "
            f"sampling={spec.training.sampling} lets them return earlier; give sampling=cyclic"
        )
    if given.bands and given.bands > spec.training.rounds:
        raise ValueError(
            f"privacy.bands={given.bands} must be at most `training.rounds`"
            f"={spec.training.rounds}; give fewer"
        )
    if given.noise_population and not given.noise_cohort:
        raise ValueError(
            f"privacy.noise_population={given.noise_population} is the population of "
            "`privacy.noise_cohort`; give that too"
        )
    if given.noise_population and given.noise_population < (given.noise_cohort or 0):
        raise ValueError(
            f"privacy.noise_cohort={given.noise_cohort} exceeds "
            f"noise_population={given.noise_population}; give a smaller cohort"
        )


def check_people(spec: Spec, data: Loaded) -> None:
    """Checks that no two clients are one person, as far as the data tell.

    Raises:
      ValueError: if the rows name clients by which they are not divided, or two names differ
        only in case, in spaces or in the form of their characters.
    """
    if column := data.report["unused_client_column"]:
        raise ValueError(
            f"partition={data.report['partition']}: column {column} names who holds a row, and "
            "this partition gives rows of one holder to several clients, so that hiding a client "
            "would hide nobody; use partition=natural, or privacy.noise_at=step to hide rows"
        )
    seen: dict[str, str] = {}
    for name in data.names:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if plain in seen:
            raise ValueError(
                f"privacy.clip={spec.privacy.clip:g}: clients {seen[plain]!r} and {name!r} may be "
                "one person, whom hiding one client would not hide; spell the name alike in all "
                "rows, or choose another `client_column`"
            )
        seen[plain] = name
