"""Shows the records of a run elsewhere as they are written: TensorBoard, Weights & Biases, MLflow.

Each is an observer of records; none changes them. Every finite number of a record is shown under
its own name, at the number of its round, from 1. A resumed run continues the curves of the same
folder. Where records are sent, and with which account, is set by these packages' own environment
variables, such as `WANDB_MODE=offline` and `MLFLOW_TRACKING_URI`.
"""

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fedjax_post.core.engine import State
from fedjax_post.simulate.record import Callback, Record
from fedjax_post.study import peers
from fedjax_post.study.files import identity
from fedjax_post.study.private_checks import is_on
from fedjax_post.study.spec import Spec

Log = Callable[[Mapping[str, float], int], object]  # numbers by name, number of the round
# (specification, the run's folder, number of rounds before the next one) -> where to log
Observer = Callable[[Spec, Path, int], contextlib.AbstractContextManager[Log]]

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


def check(spec: Spec) -> None:
    """Checks that the packages that show records are installed.

    Raises:
      ImportError: naming the package and how to install it.
    """
    for name in spec.execution.watch:
        package = _PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            remedy = f"pip install 'fedjax_post[{name}]'"
            raise ImportError(f"watch={name} needs {package}, which is not installed; {remedy}")


@contextlib.contextmanager
def watched(spec: Spec, directory: Path, *, rounds_done: int) -> Iterator[list[Callback]]:
    """Returns a context with the callbacks that show a run's records; the first process has them.

    Args:
      spec: the experiment.
      directory: of the run.
      rounds_done: number of rounds before the next one.
    """
    with contextlib.ExitStack() as stack:
        names = spec.execution.watch if peers.is_first() else ()
        opened = [_OBSERVERS[name](spec, directory, rounds_done) for name in names]
        yield [_callback(stack.enter_context(one)) for one in opened]


def numbers_of(record: Record) -> dict[str, float]:
    """Returns the finite numbers of a record, without the round's own.

    >>> numbers_of({"round": 3, "loss": 0.5, "eval_loss": float("nan"), "dropped": []})
    {'loss': 0.5}
    """
    return {
        name: float(value)
        for name, value in record.items()
        if isinstance(value, int | float) and name != "round" and math.isfinite(value)
    }


def _callback(log: Log) -> Callback:
    def show(state: State, record: Record) -> None:
        del state
        log(numbers_of(record), record["round"] + 1)

    return show


@contextlib.contextmanager
def _tensorboard(spec: Spec, directory: Path, rounds_done: int) -> Iterator[Log]:
    from tensorboardX import SummaryWriter

    # Rounds after the checkpoint are repeated, and TensorBoard drops what it had of them
    purge = rounds_done + 1 if rounds_done else None
    # A file is named by its second, and one of the same second would be overwritten
    suffix = f".from-{rounds_done:05d}"
    where = str(directory / "tensorboard")
    with SummaryWriter(where, purge_step=purge, filename_suffix=suffix) as writer:
        if not rounds_done:
            writer.add_text("settings", f"```\n{json.dumps(_settings(spec), indent=2)}\n```", 0)

        def log(numbers: Mapping[str, float], step: int) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield log


@contextlib.contextmanager
def _wandb(spec: Spec, directory: Path, rounds_done: int) -> Iterator[Log]:
    import wandb

    del rounds_done  # rounds that are repeated have the same numbers, and are kept once
    run = wandb.init(
        id=_name_of(directory),
        name=directory.name,
        dir=str(directory),
        config=_settings(spec),
        resume="allow",
    )
    with run:
        yield lambda numbers, step: run.log(dict(numbers), step=step)


@contextlib.contextmanager
def _mlflow(spec: Spec, directory: Path, rounds_done: int) -> Iterator[Log]:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client, tag, own = MlflowClient(), "fedjax_post.run", _name_of(directory)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedjax_post")
    known = client.get_experiment_by_name(name)
    number = client.create_experiment(name) if known is None else known.experiment_id
    found = client.search_runs([number], f"tags.`{tag}` = '{own}'", max_results=1)
    if found and rounds_done:
        run_id = found[0].info.run_id
        client.update_run(run_id, status="RUNNING")
    else:
        run = client.create_run(number, tags={tag: own}, run_name=directory.name)
        run_id = run.info.run_id
        params = [Param(path, value) for path, value in _settings(spec).items()]
        client.log_batch(run_id, params=params)

    def log(numbers: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        client.log_batch(run_id, [Metric(key, value, now, step) for key, value in numbers.items()])

    status = "KILLED"
    try:
        yield log
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status=status)


_OBSERVERS: Mapping[str, Observer] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def _settings(spec: Spec) -> dict[str, str]:
    """Returns the settings that affect results, and what the numbers are."""
    private = is_on(spec)
    note = {"metrics": "not private: the guarantee does not cover them"} if private else {}
    return {path: str(value) for path, value in identity(spec).items()} | {
        "seed": str(spec.seed),
        **note,
    }


def _name_of(directory: Path) -> str:
    """Returns the name of a run elsewhere, which a resumed run has again."""
    return hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
