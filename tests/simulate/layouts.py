"""Federations over a tiny decoder on several layouts of eight devices, for `test_mesh`.

A program of its own, because a process decides how many devices its CPU has before jax
starts: `python -m tests.simulate.layouts usual <file>` writes what came out as a pickle of
numpy, and with `rest` what takes long.
"""

import pickle
import re
import sys
from functools import cache
from tempfile import TemporaryDirectory

import jax
import numpy as np
import optax

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.adapters.lora import add_lora
from fedjax_post.core import engine, robust, uplinks
from fedjax_post.model.generate import generate
from fedjax_post.model.quantize import quantize_model
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.simulate import mesh as meshes
from fedjax_post.simulate.asynchronous import Buffer
from fedjax_post.simulate.programs import Chunk, Stored
from fedjax_post.testing.models import tiny_model

LAYOUTS = ("clients:8", "clients:4,model:2", "model:8")
NAMES = ("fed_avg", "scaffold", "top_k", "trimmed_mean", "fed_ex_lora")
USUAL = [(LAYOUTS[1], name) for name in NAMES] + [(LAYOUTS[0], NAMES[0]), (LAYOUTS[2], NAMES[0])]
REST = [(layout, name) for layout in LAYOUTS for name in NAMES if (layout, name) not in USUAL]
WIDTH, VOCAB = 40, 56


def make_model(quantize=None, **changes):
    """A decoder of eight heads, no base matrix of which has the size of an adapter's."""
    shape = {"num_heads": 8, "num_kv_heads": 8, "head_dim": 4, "intermediate_size": 48} | changes
    model = tiny_model(hidden_size=WIDTH, vocab_size=VOCAB, num_layers=1, **shape)
    model = model if quantize is None else quantize_model(model, quantize)
    return add_lora(model, jax.random.key(1), rank=2, alpha=4.0, targets=["q_proj", "down_proj"])


MODEL, PARAMS = make_model()


def make_clients(count=10):
    """Clients with 3 to 5 rows of random tokens."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "tokens": rng.integers(0, VOCAB, (3 + k % 3, 10)).astype(np.int32),
            "loss_mask": np.arange(10)[None] >= np.full((3 + k % 3, 1), 3),
        }
        for k in range(count)
    ]
    return fp.ArrayClients(rows, batch_size=2, local_steps=2)


@cache
def make_algorithms():
    """One of every kind: plain, with client states, a lossy link, a stack, a fold."""
    tx, whole = optax.sgd(0.3), algorithms.fed_avg(sft_loss, optax.sgd(0.3))
    return {
        "fed_avg": whole,
        "scaffold": algorithms.scaffold(sft_loss, 0.3, participation=0.6),
        "top_k": whole._replace(uplink=uplinks.error_feedback(uplinks.top_k(0.25))),
        "trimmed_mean": whole._replace(aggregate=robust.trimmed_mean(0.2)),
        "fed_ex_lora": algorithms.fed_ex_lora(sft_loss, tx),
    }


def kept(executor):
    """The executor, with the same programs whenever it is asked for the same algorithm."""
    made = {}  # by identity, beside the algorithm, which keeps it from being another's

    def programs(algorithm):
        return made.setdefault(id(algorithm), (executor(algorithm), algorithm))[0]

    return programs


@cache
def executor_of(layout):
    """The executor of a mesh, or of one device."""
    return kept(fp.device if layout == "one" else fp.on_mesh(meshes.make_mesh(layout)))


def play(algorithm, rounds=2, *, clients=None, start=(MODEL, PARAMS), **plan):
    """The states and records of a run of cohorts of 6, in chunks of at most 5."""
    model, params = start
    plan = {"sampler": fp.uniform(6), "chunk_size": 5, "executor": executor_of("one")} | plan
    run = fp.run(
        algorithm,
        model,
        clients or make_clients(),
        params=params,
        rounds=rounds,
        plan=fp.Plan(**plan),
    )
    return list(run)


def deployed(algorithm, state, mesh=None):
    """Greedy tokens and logits of what is deployed, on the mesh or on one device."""
    model = MODEL if mesh is None else fp.put_on_mesh(MODEL, mesh)
    model, params = engine.deployed(algorithm, model, state)
    prompts = np.arange(12, dtype=np.int32).reshape(3, 4)
    there = np.ones((3, 4), bool)
    tokens = generate(model, params, prompts, there, max_new_tokens=4, eos_id=1, pad_id=0)
    return np.asarray(tokens), np.asarray(jax.jit(type(model).logits)(model, params, prompts))


def outcome(layout, name):
    """Final state and records of an algorithm on a layout; of a fold, also what is deployed."""
    mesh = None if layout == "one" else meshes.make_mesh(layout)
    algorithm = make_algorithms()[name]
    states, records = zip(*play(algorithm, executor=executor_of(layout)), strict=True)
    answers = deployed(algorithm, states[-1], mesh) if name == "fed_ex_lora" else None
    return jax.device_get(states[-1]), records, answers


def variants(executor):
    """Last states of FedAvg over a base of codes, and with a buffer in place of rounds."""
    algorithm = make_algorithms()["fed_avg"]
    start = make_model("nf4", head_dim=16, intermediate_size=128)
    codes = play(algorithm, start=start, executor=executor)
    buffered = play(algorithm, 4, executor=executor, buffer=Buffer(concurrency=6, size=3))
    return {"codes": jax.device_get(codes[-1][0]), "buffered": jax.device_get(buffered[-1][0])}


def share_held(layout):
    """The share of the base's bytes that the first device holds."""
    model = fp.put_on_mesh(MODEL, meshes.make_mesh(layout))
    leaves = jax.tree.leaves(model)
    return sum(x.addressable_shards[0].data.nbytes for x in leaves) / sum(x.nbytes for x in leaves)


def resumed(first, then):
    """Four rounds, the last two on another layout."""
    algorithm = make_algorithms()["scaffold"]
    with TemporaryDirectory() as directory:
        play(algorithm, 2, executor=first, directory=directory)
        rest = play(algorithm, 4, executor=then, directory=directory, resume=True)
    assert len(rest) == 2
    return jax.device_get(rest[-1][0])


def compiled_visit(layout, *, misplaced=False):
    """Collectives and operations of FedAvg's compiled visit of 8 clients.

    Args:
      layout: the mesh.
      misplaced: split the base along the clients, which makes XLA gather it.
    """
    alone = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("clients",))
    mesh = alone if layout == "one" else meshes.make_mesh(layout)
    algorithm, clients = make_algorithms()["fed_avg"], make_clients()
    programs = meshes.compile_for(algorithm, mesh)
    lanes = jax.sharding.NamedSharding(mesh, jax.P("clients"))
    model = fp.put_on_mesh(MODEL, mesh)
    if misplaced:
        split = jax.sharding.NamedSharding(mesh, jax.P(None, "clients"))
        wide = lambda x: x.ndim == 3 and x.shape[1] % 8 == 0
        model = jax.tree.map(lambda x: jax.device_put(x, split) if wide(x) else x, model)
    state = fp.put_on_mesh(engine.init(algorithm, PARAMS), mesh)
    ids = np.arange(8, dtype=np.int32)
    visits = [clients.visit(i, np.random.default_rng(i)) for i in ids]
    data = jax.tree.map(lambda *x: np.stack(x), *visits)
    spread = lambda tree: jax.device_put(tree, lanes)
    chunk = Chunk(np.int32(0), spread(ids), spread(data))
    total = programs.start(model, state.replica, data, 8)
    stored = Stored(engine.ClientState((), ()), spread(np.zeros(8, bool)))
    args = model, state.replica, total, chunk, stored, jax.random.key(0)
    compiled = programs.visit.lower(*args).compile()
    return collectives(compiled.as_text()), compiled.cost_analysis()["flops"]


def collectives(text):
    """(operation, shape) of everything that crosses between devices, without axes of size 1."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found = []
    for line in text.splitlines():
        if match := re.search(rf"= (.*?) ({kinds})(-start)?\(", line):
            for shape in re.findall(r"\w+\[([\d,]*)\]", match[1]):
                sizes = tuple(int(n) for n in shape.split(",") if n and n != "1")
                found.append((match[2], sizes))
    return found


def usual():
    """What most of the tests ask about."""
    one, split = executor_of("one"), executor_of(LAYOUTS[1])
    found = {pair: outcome(*pair) for pair in [*(("one", name) for name in NAMES), *USUAL]}
    found["variants"] = variants(one), variants(split)
    found["held"] = {layout: share_held(layout) for layout in LAYOUTS}
    found["compiled"] = {layout: compiled_visit(layout) for layout in LAYOUTS}
    found["misplaced"] = compiled_visit("clients:8", misplaced=True)
    found["alone"] = compiled_visit("one")[1]
    found["straight"] = jax.device_get(play(make_algorithms()["scaffold"], 4)[-1][0])
    found["resumed"] = resumed(one, split), resumed(split, one)
    return found


def main(what, path):
    """Writes what came out."""
    found = usual() if what == "usual" else {pair: outcome(*pair) for pair in REST}
    with open(path, "wb") as file:
        pickle.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
