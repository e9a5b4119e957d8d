"""The formal corpus of the built-in base as a federation, for pre-training that is federated.

A row is a formula in one of the corpus's notations: the question up to its sign, and the answer.
Clients differ in their skills, two or three each, as in the built-in tasks. The held-out split has
lists that no client has, and all skills equally often.
"""

import random

from fedjax_post.data.builtin import corpus, tasks

CLIENT_SIZE = 512  # documents of a client


def client_examples(client_id: int, *, num_examples: int, seed: int = 0) -> list[dict]:
    """Returns the documents of one client; fewer are the first ones of more.

    Args:
      client_id: any integer from 0; the number of clients is not limited.
      num_examples: number of documents.
      seed: seed of the whole federation.

    Returns:
      Rows with prompt, response, task (text) and client (int).
    """
    _, shares = tasks.client_profile(client_id, seed=seed)
    rng = random.Random(f"documents {seed} {client_id}")
    drawn = tasks.draw_problems(rng, shares, num_examples)
    return [_row(rng, problem, client=client_id) for problem in drawn]


def heldout_examples(num_examples: int, *, seed: int = 0) -> list[dict]:
    """Returns documents of the held-out split, of client -1."""
    rng = random.Random(f"documents held out {seed}")
    names = list(tasks.TASKS)
    drawn = (
        tasks.draw_problem(rng, names[index % len(names)], held_out=True)
        for index in range(num_examples)
    )
    return [_row(rng, problem, client=-1) for problem in drawn]


def rows(num_clients: int = tasks.NUM_CLIENTS, *, num_heldout: int = 480, seed: int = 0) -> dict:
    """Returns the default federation as `datasets.Dataset`s: {"train": ..., "test": ...}.

    Args:
      num_clients: clients 0 to num_clients - 1, `CLIENT_SIZE` documents each.
      num_heldout: documents of the common held-out set.
      seed: seed of the whole federation.

    Raises:
      ValueError: if there are no clients or no held-out rows.
    """
    return tasks.federation(
        num_clients,
        num_heldout,
        client_fn=lambda client: client_examples(client, num_examples=CLIENT_SIZE, seed=seed),
        heldout_fn=lambda num: heldout_examples(num, seed=seed),
    )


def _row(rng: random.Random, problem: tasks.Problem, *, client: int) -> dict:
    question, answer = corpus.formula(rng, problem)
    return {"prompt": question, "response": answer, "task": problem.task, "client": client}
