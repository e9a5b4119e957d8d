"""Eight simulated devices against one: the same result, whatever the layout."""

from collections.abc import Iterator

from fedjax_post.experiments.benchmark.lines import Aim, Figure
from fedjax_post.experiments.benchmark.processes import ours, play, side
from fedjax_post.experiments.benchmark.settings import Settings, select

_DEVICES = 8
_LAYOUTS = ("clients:8", "clients:4,model:2", "model:8")


def measure(settings: Settings) -> Iterator[Figure]:
    """Yields, for each layout, its difference from one device, relative to what was learned."""
    environ = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={_DEVICES}"}
    environ |= {"NPROC": "32"}  # enough threads for all devices to wait for each other
    rounds = 1 if settings.tiny else 3
    with side("devices", ours("layouts"), environ=environ) as one:
        alone = play(one, axes="", rounds=rounds)
        for axes, _ in select(dict.fromkeys(_LAYOUTS), settings):
            answer = play(one, axes=axes, rounds=rounds)
            details = {"rounds": rounds, "loss": answer["loss"], "loss_of_one": alone["loss"]}
            details |= {"seconds": answer["seconds"], "seconds_of_one": alone["seconds"]}
            yield Figure(
                f"{axes} against one device: difference over change",
                answer["difference"],
                "ratio",
                aim=Aim(1e-3, at_least=False),
                details=details,
            )
