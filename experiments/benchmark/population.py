"""The cost of a thousand times more clients for a round of the same cohort: time, host memory."""

from collections.abc import Iterator

from fedjax_post.experiments.benchmark.lines import Aim, Figure, ratio
from fedjax_post.experiments.benchmark.processes import ours, side, take_turns
from fedjax_post.experiments.benchmark.settings import Settings, select

_ROUNDS = 10  # in a turn, with one checkpoint


def measure(settings: Settings) -> Iterator[Figure]:
    """Yields both figures, without and with client states."""
    for title, algorithm in select({"FedAvg": "fed_avg", "SCAFFOLD": "scaffold"}, settings):
        yield from _compare(title, algorithm, settings)


def _compare(title: str, algorithm: str, settings: Settings) -> Iterator[Figure]:
    few, many = (10, 100) if settings.tiny else (1_000, 1_000_000)
    rounds = 1 if settings.tiny else _ROUNDS
    with (
        side("few clients", ours("population", str(few), algorithm)) as small,
        side("many clients", ours("population", str(many), algorithm)) as large,
    ):
        answers = take_turns(
            [small, large], settings.turns, warm_up=settings.warm_up, rounds=rounds
        )
    seconds = [[a["seconds"] / rounds for a in one] for one in answers]
    known = {"populations": [few, many], "rounds_a_turn": rounds}
    versus = f"{title}, {many:,} clients over {few:,}"
    yield ratio(
        f"{versus}: time of a round",
        seconds[1],
        seconds[0],
        aim=Aim(1.1, at_least=False),
        seconds_of_many=sorted(seconds[1])[len(seconds[1]) // 2],
        seconds_of_few=sorted(seconds[0])[len(seconds[0]) // 2],
        **known,
    )
    peaks = [one[-1]["peak_bytes"] for one in answers]
    more = float(peaks[1] - peaks[0])
    limit = Aim(200e6, at_least=False)
    details = {**known, "peak_of_many": peaks[1], "peak_of_few": peaks[0]}
    yield Figure(f"{versus}: more host memory", more, "bytes", aim=limit, details=details)
