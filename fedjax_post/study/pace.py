"""The pace of a run: speeds of clients, asynchronous aggregation, and telemetry."""

from typing import Any

from fedjax_post.adapters.telemetry import adapter_telemetry
from fedjax_post.simulate.asynchronous import Buffer, check_size
from fedjax_post.simulate.speeds import Speeds, lognormal, read_speeds
from fedjax_post.study.spec import Spec

_USUAL_EXPONENT = 0.5
_USUAL_TELEMETRY = 16


def check(spec: Spec) -> None:
    """Checks that no field on the pace is without effect.

    Raises:
      ValueError: naming the field and the remedy.
    """
    if spec.training.buffer_size is None:
        for name in ("concurrency", "staleness_exponent"):
            if (value := getattr(spec.training, name)) is not None:
                raise ValueError(f"{name}={value} is for asynchronous runs; give `buffer_size`")
        if spec.training.client_speeds is not None and spec.method.baseline != "none":
            raise ValueError(
                f"client_speeds={spec.training.client_speeds} has no effect with "
                f"baseline={spec.method.baseline}; leave it out"
            )
        return
    given = f"buffer_size={spec.training.buffer_size} makes the run asynchronous"
    if spec.training.cohort_size is not None or spec.training.sampling != "uniform":
        raise ValueError(
            f"{given}, without cohorts; give `concurrency`, not `cohort_size` or `sampling`"
        )
    if spec.method.baseline != "none":
        raise ValueError(f"{given}, which baseline={spec.method.baseline} cannot be; leave one out")


def plan_of(spec: Spec, population: int) -> dict[str, Any]:
    """Returns the fields of `Plan` for speeds, telemetry and asynchronous aggregation.

    Raises:
      ValueError, OSError: for speeds that cannot be read, or a buffer larger than the population.
    """
    watched = spec.scoring.telemetry_clients
    if watched is None:
        watched = 0 if spec.privacy.secure else _USUAL_TELEMETRY
    watch = watched and spec.method.baseline == "none"
    fields: dict[str, Any] = {
        "speeds": _speeds(spec, population),
        "telemetry": adapter_telemetry(watched) if watch else None,
    }
    if spec.training.buffer_size is not None:
        exponent = spec.training.staleness_exponent
        fields["buffer"] = Buffer(
            spec.training.concurrency or spec.training.buffer_size,
            spec.training.buffer_size,
            _USUAL_EXPONENT if exponent is None else exponent,
        )
        check_size(fields["buffer"], population)
    return fields


def _speeds(spec: Spec, population: int) -> Speeds | None:
    given = spec.training.client_speeds
    if given is None:
        return None
    kind, _, sigma = given.partition(":")
    if kind != "lognormal":
        return read_speeds(given, population)
    try:
        return lognormal(float(sigma), seed=spec.seed)
    except ValueError as error:
        raise ValueError(f"client_speeds={given}: {error}; an example is lognormal:1") from None
