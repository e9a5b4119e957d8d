"""What a federated round costs beyond central training on the same tokens.

    python -m experiments.benchmark.federation_tax --cohort_size=8 --local_steps=4

Two runs take turns in one process, round by round: a federation, and one central
LoRA run that takes the same steps on the union of its clients' batches, with
the same optimizer. Both prepare data on the host and write records. Printed is
the ratio of their tokens per second, as a line of JSON.
"""

import json
import tempfile

import jax
import numpy as np
import optax
from absl import app, flags, logging

import fedjax_post
from algorithms import ALGORITHMS
from algorithms.references import central
from fedjax_post import data
from fedjax_post.adapters.lora import add_lora
from fedjax_post.hub.load import load_model
from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.objectives.sft import sft_loss

_MODEL = flags.DEFINE_string("model", "builtin", "model folder or hub name")
_DATASET = flags.DEFINE_string("dataset", "builtin", "data set")
_ALGORITHM = flags.DEFINE_enum("algorithm", "fed_avg", list(ALGORITHMS), "what is compared")
_COHORT_SIZE = flags.DEFINE_integer("cohort_size", 8, "clients a round")
_CHUNK_SIZE = flags.DEFINE_integer("chunk_size", None, "clients in one compiled unit")
_LOCAL_STEPS = flags.DEFINE_integer("local_steps", 4, "steps a visit")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "rows a step")
_MAX_LENGTH = flags.DEFINE_integer("max_length", 0, "tokens a row; 0: the longest row")
_LORA_RANK = flags.DEFINE_integer("lora_rank", 8, "rank")
_ALTERNATIONS = flags.DEFINE_integer("alternations", 15, "counted rounds of each side")
_WARM_UP = flags.DEFINE_integer("warm_up", 3, "rounds of each side that are not counted")


def main(argv: list[str]) -> None:
    """Runs both sides in turn and prints the ratios."""
    del argv
    logging.set_verbosity(logging.WARNING)
    model, params = add_lora(
        load_model(_MODEL.value), jax.random.key(0), rank=_LORA_RANK.value, alpha=16
    )
    text = data.Text(
        max_length=_MAX_LENGTH.value or None, context_length=model.config.max_positions
    )
    loaded = data.load_clients(
        _DATASET.value,
        load_tokenizer(_MODEL.value),
        batch_size=_BATCH_SIZE.value,
        local_steps=_LOCAL_STEPS.value,
        text=text,
    )
    rounds = _WARM_UP.value + _ALTERNATIONS.value
    with tempfile.TemporaryDirectory() as folder:

        def start(name, algorithm, **plan):
            plan = fedjax_post.Plan(
                sampler=fedjax_post.uniform(_COHORT_SIZE.value),
                directory=f"{folder}/{name}",
                checkpoint_every=rounds,
                **plan,
            )
            return fedjax_post.run(
                algorithm, model, loaded.clients, params=params, rounds=rounds, plan=plan
            )

        sides = {
            "federated": start("federated", _federated(), chunk_size=_CHUNK_SIZE.value),
            "central": start(
                "central", central(sft_loss, optax.adam(1e-3)), feed=fedjax_post.pooled
            ),
        }
        records: dict[str, list] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                records[name].append(next(side)[1])
    print(json.dumps(_compared(records)))


def _federated():
    factory = ALGORITHMS[_ALGORITHM.value]
    if _ALGORITHM.value == "scaffold":
        return factory(sft_loss, 1e-3, participation=0.1)
    return factory(sft_loss, optax.adam(1e-3))


def _compared(records: dict[str, list]) -> dict:
    """Medians, and the interquartile range of the ratio of neighbouring rounds."""
    counted = {name: side[_WARM_UP.value :] for name, side in records.items()}
    speed = {name: [r["num_read"] / r["seconds"] for r in side] for name, side in counted.items()}
    ratio = np.divide(speed["federated"], speed["central"])
    low, middle, high = np.percentile(ratio, [25, 50, 75]).round(3).tolist()
    return {
        "algorithm": _ALGORITHM.value,
        "cohort_size": _COHORT_SIZE.value,
        "local_steps": _LOCAL_STEPS.value,
        "batch_size": _BATCH_SIZE.value,
        "ratio": middle,
        "ratio_quartiles": [low, high],
        "alternations": len(ratio),
        **{f"{name}_tokens_per_second": round(float(np.median(s))) for name, s in speed.items()},
        **{f"{name}_loss": round(side[-1]["loss"], 4) for name, side in records.items()},
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


if __name__ == "__main__":
    app.run(main)
