"""The flags of the benchmark, and the settings that they describe."""

import os
from pathlib import Path
from typing import Any

from absl import flags

from fedjax_post.experiments.benchmark import lines
from fedjax_post.experiments.benchmark.settings import Settings

# One module for each suite, so that no suite imports what only another one needs.
SUITES = {
    "tax": "cost of a federated round beyond central training",
    "peers": "against torch + peft, Flower and FedJAX",
    "memory": "peak memory, from the compiler",
    "population": "a million clients against a thousand",
    "soak": "a long run: memory, disk, compilation and time at its end against its start",
    "startup": "imports, and the time to the first round",
    "models": "loading a checkpoint, plain and quantized, and compiling its depth",
    "prefix": "rows that begin with the same tokens, which are read once or in every row",
    "profile": "where the time of one training step goes, on one core",
    "sweep": "eight settings in one program against one run",
    "devices": "eight simulated devices against one",
    "gpu": "tokens per second, utilisation and memory on an accelerator",
}


def define() -> flags.FlagValues:
    """Returns the flags of the program, not parsed yet."""
    values = flags.FlagValues()
    default = Settings()
    own: dict[str, Any] = {"flag_values": values}
    known = "; ".join(f"{name}: {what}" for name, what in SUITES.items())
    flags.DEFINE_bool("help", False, "print the flags", **own)
    flags.DEFINE_enum("suite", None, list(SUITES), known, **own)
    flags.DEFINE_bool("table", False, "print the results file as Markdown, measure nothing", **own)
    flags.DEFINE_string("output", str(lines.RESULTS), "the results file", **own)
    flags.DEFINE_integer("turns", default.turns, "counted turns of each side", 1, **own)
    flags.DEFINE_integer("warm_up", default.warm_up, "turns that are not counted", 0, **own)
    flags.DEFINE_string("only", "", "regular expression: figures to measure", **own)
    flags.DEFINE_bool("tiny", False, "tiny shapes, which only show that it works", **own)
    flags.DEFINE_string("model", default.model, "builtin, or a Hugging Face folder", **own)
    flags.DEFINE_string("dataset", None, "peers: rows of different lengths, such as Dolly's", **own)
    flags.DEFINE_string(
        "tokenizer", "", "peers: folder; --dataset is then run on random weights", **own
    )
    flags.DEFINE_integer("max_length", default.max_length, "tokens of a row of --dataset", 2, **own)
    packed = "peers: tokens of one of our rows, shared by rows of --dataset; 0: a row each"
    flags.DEFINE_integer("pack_length", 0, packed, 0, **own)
    flags.DEFINE_float(
        "peak_flops", 0.0, "gpu: operations per second of the device; 0: looked up", **own
    )
    flags.DEFINE_string("cache", str(default.cache), "peers: folder of their environments", **own)
    pythons = "peers: interpreters of environments made by hand, such as torch=<path>"
    flags.DEFINE_list("pythons", [], pythons, **own)
    flags.DEFINE_string("fedjax_source", "", "peers: what pip installs for FedJAX", **own)
    flags.DEFINE_list(
        "cores", None, "peers: the core of our side and of theirs (one core for both)", **own
    )
    return values


def read_settings(options: flags.FlagValues) -> Settings:
    """Returns the settings that parsed flags describe.

    Raises:
      ValueError: for wrong values; names the flag, its value and the remedy.
    """
    pythons = [entry.partition("=") for entry in options.pythons]
    if any(not path for _, _, path in pythons):
        raise ValueError(f"--pythons={','.join(options.pythons)}: write name=<path>, ...")
    same = {name: options[name].value for name in Settings._fields if name in options}
    cores = options.cores or [_first_core()] * 2
    if len(cores) != 2:
        raise ValueError(f"--cores={','.join(cores)}: give two numbers, ours and theirs")
    same |= {"pythons": {name: path for name, _, path in pythons}, "cores": tuple(cores)}
    return Settings(**{**same, "cache": Path(options.cache).expanduser()})


def _first_core() -> str:
    return str(min(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ""
