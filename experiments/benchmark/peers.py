"""Against alternatives: torch + peft, Flower's simulation, FedJAX. The losses must agree.

The two sides of a comparison run in separate processes and take turns, round by round.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from fedjax_post.experiments.benchmark import environments, lm_job, real_model
from fedjax_post.experiments.benchmark.lines import Aim, Figure, losses_agree, ratio
from fedjax_post.experiments.benchmark.processes import (
    ONE_THREAD,
    ours,
    play,
    side,
    take_turns,
    theirs,
)
from fedjax_post.experiments.benchmark.settings import Settings, select
from fedjax_post.experiments.benchmark.shapes import MEDIUM, TINY
from fedjax_post.hub.tokenizer import load_tokenizer


def measure(settings: Settings) -> Iterator[Figure]:
    """Yields the figures of all peers that can be installed here."""
    comparisons = {
        "torch + peft, built-in model": _built_in,
        "torch + peft, 15M parameters": _medium,
        "torch + peft, rows of unlike length": _ragged,
        "Flower, a client's overhead": _flower,
        "FedJAX, FLUTE's workload": _fed_jax,
    }
    for name, compare in select(comparisons, settings):
        try:
            yield compare(name, settings)
        except environments.Skipped as reason:
            print(f"{name}: skipped, {reason}", flush=True)
    for _, compare in select({"SmolLM2": real_model.measure}, settings):
        try:
            yield from compare(settings)
        except environments.Skipped as reason:
            print(f"SmolLM2: skipped, {reason}", flush=True)


def _built_in(name: str, settings: Settings) -> Figure:
    job = lm_job.Job("builtin", length=64, cohort_size=8, local_steps=4, batch_size=4)
    return compare_lm(name, job, settings, aim=Aim(1.5))


def _medium(name: str, settings: Settings) -> Figure:
    shape = TINY if settings.tiny else MEDIUM
    with tempfile.TemporaryDirectory() as folder:
        job = lm_job.Job(
            model=lm_job.random_model(Path(folder), shape),
            length=128,
            cohort_size=4,
            local_steps=2,
            batch_size=4,
        )
        return compare_lm(name, job, settings, aim=Aim(1.1))


def _ragged(name: str, settings: Settings) -> Figure:
    """Rows of a data set; with `--tokenizer` on random weights, as only lengths matter here."""
    if settings.dataset is None:
        raise environments.Skipped("it needs --dataset=<folder of Dolly's rows, a file a client>")
    with tempfile.TemporaryDirectory() as folder:
        model = settings.model
        if settings.tokenizer:
            tokenizer = load_tokenizer(settings.tokenizer)
            shape = {**(TINY if settings.tiny else MEDIUM), "vocab_size": len(tokenizer)}
            model = lm_job.random_model(Path(folder), shape)
            tokenizer.save_pretrained(folder)
        job = lm_job.Job(
            model=model,
            dataset=settings.dataset,
            length=settings.max_length,
            cohort_size=2,
            local_steps=2,
            # about as many examples in a step with packing as without
            batch_size=2 if settings.pack_length else 8,
            pack_length=settings.pack_length,
        )
        return compare_lm(name, job, settings, aim=Aim(2.0))


def compare_lm(name: str, job: lm_job.Job, settings: Settings, *, aim: Aim) -> Figure:
    """Returns our tokens per second over those of torch + peft, padding not counted.

    Each side has one core and one thread, except on an accelerator.

    Args:
      name: of the figure.
      job: what both sides do.
      settings: of the benchmark.
      aim: the bound that the figure should reach.

    Raises:
      Skipped: if torch and peft cannot be installed.
    """
    python = environments.interpreter(environments.TORCH, settings.cache, given=settings.pythons)
    if settings.tiny:
        job = job._replace(cohort_size=2, local_steps=1, batch_size=2)
    job = job._replace(rounds=settings.warm_up + settings.turns)
    cores = settings.cores if job.device == "cpu" else ("", "")
    environ = ONE_THREAD if job.device == "cpu" else {}
    with tempfile.TemporaryDirectory() as folder:
        lm_job.write_job(Path(folder), job)
        with (
            side("fedjax_post", ours("ours", folder, cores[0])) as us,
            side("torch", theirs(python, "torch_peft", folder, cores[1]), environ=environ) as them,
        ):
            answers = take_turns([us, them], settings.turns, warm_up=settings.warm_up)
            losses = [play(one, evaluate=True)["loss"] for one in (us, them)]
    speeds = [[a["tokens"] / a["seconds"] for a in side] for side in answers]
    figure = ratio(name, *speeds, aim=aim, **_job_details(job))
    return figure._replace(
        details={
            **figure.details,
            "our_tokens_per_second": _middle(speeds[0]),
            "their_tokens_per_second": _middle(speeds[1]),
            "tokens_a_turn": [side[-1]["tokens"] for side in answers],
            "our_padding": answers[0][-1]["padding"],
            **_losses(name, losses, tolerance=0.01),
        }
    )


def _flower(name: str, settings: Settings) -> Figure:
    python = environments.interpreter(environments.FLOWER, settings.cache, given=settings.pythons)
    return _compare_small(name, settings, ("small", python, "flower"), rounds=5, aim=Aim(10.0))


def _fed_jax(name: str, settings: Settings) -> Figure:
    wanted = environments.FEDJAX
    if settings.fedjax_source:
        wanted = wanted._replace(requirements=(settings.fedjax_source,))
    python = environments.interpreter(wanted, settings.cache, given=settings.pythons)
    rounds = 10 if settings.tiny else 100
    return _compare_small(name, settings, ("flute", python, "fed_jax"), rounds=rounds, aim=Aim(2.0))


def _compare_small(
    name: str, settings: Settings, sides: tuple[str, Path, str], *, rounds: int, aim: Aim
) -> Figure:
    """Their seconds over ours; a turn is `rounds` rounds."""
    workload, python, script = sides
    quiet = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "FLWR_TELEMETRY_ENABLED": "0"}
    with (
        side("fedjax_post", ours("ours_logistic", workload)) as us,
        side(script, theirs(python, script), environ=quiet) as them,
    ):
        answers = take_turns([us, them], settings.turns, warm_up=settings.warm_up, rounds=rounds)
        losses = [play(one, evaluate=True)["loss"] for one in (us, them)]
    ours_s, theirs_s = ([a["seconds"] / rounds for a in side] for side in answers)
    details = {"rounds_a_turn": rounds, "our_seconds_a_round": _middle(ours_s)}
    details |= {"their_seconds_a_round": _middle(theirs_s)}
    figure = ratio(name, theirs_s, ours_s, aim=aim, **details)
    # FedJAX shuffles a client's examples in another order.
    found = _losses(name, losses, tolerance=0.02 if workload == "flute" else 0.001)
    return figure._replace(details={**figure.details, **found})


def _losses(name: str, losses: list[float], *, tolerance: float) -> dict:
    agree = losses_agree(*losses, tolerance=tolerance)
    verdict = "agree" if agree else "DIFFER: this figure does not count"
    print(
        f"{name}: loss after the same work, ours {losses[0]:.5g}, theirs {losses[1]:.5g}; {verdict}"
    )
    return {"our_loss": losses[0], "their_loss": losses[1], "losses_agree": agree}


def _job_details(job: lm_job.Job) -> dict:
    names = ("length", "cohort_size", "local_steps", "batch_size", "rank", "pack_length", "dtype")
    return {name: getattr(job, name) for name in names}


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
