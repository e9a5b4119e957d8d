"""What the feed passes to the compiled program."""

import jax
import numpy as np

from fedjax_post.data.batches import ArrayClients
from fedjax_post.simulate import feed
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.simulate.step import Step


def test_arrays_are_cut_behind_the_longest_visit_of_a_chunk():
    """Every step that is taken is there, and there are at most three sizes."""
    sizes = [64, 3, 5, 16, 2, 1, 8, 30]
    arrays = [10.0 * k + np.arange(n) for k, n in enumerate(sizes)]
    clients = ArrayClients(arrays, batch_size=1, local_epochs=1)
    rooms = set()
    steps = [Step(round, ((round, np.arange(len(sizes))),)) for round in (0, 1)]
    for _, _, chunk in feed.chunks(clients, steps, widths=(4, 1), seed=0):
        room = chunk.data.step_mask.shape[1]
        rooms.add(room)
        for lane, client_id in enumerate(chunk.client_ids.tolist()):
            if client_id >= 0:
                whole = clients.visit(client_id, data_rng(0, int(chunk.round), client_id))
                cut = jax.tree.map(lambda x, lane=lane: x[lane], chunk.data)
                assert cut.step_mask.sum() == sizes[client_id]
                assert np.array_equal(cut.batches, whole.batches[:room])
    assert rooms <= {4, 16, 64}
    assert len(rooms) > 1
