"""One of several processes of a federation, for `test_distributed`.

`python -m tests.simulate.pair <number> <processes> <port> <folder>` joins the others, plays
runs and writes what it found to the folder, as a pickle of numpy.
"""

import pickle
import sys
from pathlib import Path

import jax


def main(number, count, *, port, folder):
    """Everything that the tests ask one process about."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, number)
    # These make arrays, and with them the process's devices
    import fedjax_post as fp
    from tests.simulate import layouts

    algorithms = layouts.make_algorithms()
    by_lane = fp.on_mesh(fp.make_mesh("clients:4"))
    scaffold = {"algorithm": algorithms["scaffold"], "rounds": 4, "executor": by_lane}
    clients = Watched(layouts.make_clients())
    found = {}
    found["fresh"] = played(layouts, **scaffold, clients=clients, directory=folder / "fresh")
    found["visits"] = clients.visits
    found["went on"] = played(layouts, **scaffold, directory=folder / "went on", resume=True)
    try:
        layouts.play(**scaffold, directory=folder / "fresh")
    except FileExistsError as error:
        found["refused"] = str(error)
    mesh = fp.make_mesh("clients:2,model:2")
    top_k = layouts.play(algorithms["top_k"], executor=fp.on_mesh(mesh))
    found["top_k"] = numpy_of(top_k)
    found["deployed"] = layouts.deployed(algorithms["top_k"], top_k[-1][0], mesh)
    (folder / f"found-{number}").write_bytes(pickle.dumps(found))


class Watched:
    """Clients that note who was visited, in order."""

    def __init__(self, clients):
        self.clients, self.visits = clients, []

    def __len__(self):
        return len(self.clients)

    def num_steps(self, client_id):
        return self.clients.num_steps(client_id)

    def fingerprint(self):
        return self.clients.fingerprint()

    def visit(self, client_id, rng):
        self.visits.append(client_id)
        return self.clients.visit(client_id, rng)


def played(layouts, **given):
    """The last state and all records of a run."""
    return numpy_of(layouts.play(**given))


def numpy_of(steps):
    """The last state as numpy, and all records."""
    states, records = zip(*steps, strict=True)
    return jax.device_get(states[-1]), records


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), port=sys.argv[3], folder=Path(sys.argv[4]))
