"""The built-in instruction tasks: unlimited clients, held-out rows, answers that can be checked.

There are ten small skills on lists of words and numbers, with instructions in six dialects.
Clients differ in the skills that they ask for (two or three each, in different proportions)
and in how they ask (one dialect each). A list belongs to the training or to
the held-out split according to its hash, regardless of the task, so that the splits
share no list by construction.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from fedjax_post.data.builtin import lexicon
from fedjax_post.data.typed import from_memory

NUM_CLIENTS = 128  # of the default federation
HELD_OUT_SHARE = 8  # one of so many lists is held out
_WORD_LENGTHS, _NUMBER_LENGTHS = (3, 4, 5), (3, 4)


class Problem(NamedTuple):
    """One question without its wording: a skill, a list and up to two arguments."""

    task: str
    operands: tuple[str, ...]
    arguments: tuple[str, ...] = ()


class Skill(NamedTuple):
    """How to draw a skill's lists and how to solve them."""

    pool: Sequence[str]
    lengths: tuple[int, ...]
    solve: Callable  # (operands, *arguments) -> answer words


def _keep(operands, plural):
    return [word for word in operands if lexicon.KIND_PLURALS[lexicon.KIND_OF[word]] == plural]


TASKS = {
    "reverse": Skill(lexicon.WORDS, _WORD_LENGTHS, lambda x: x[::-1]),
    "swap": Skill(lexicon.WORDS, _WORD_LENGTHS, lambda x: (x[-1], *x[1:-1], x[0])),
    "double": Skill(lexicon.WORDS, (2, 3, 4), lambda x: [word for word in x for _ in range(2)]),
    "replace": Skill(
        lexicon.WORDS, _WORD_LENGTHS, lambda x, a, b: [b if word == a else word for word in x]
    ),
    "opposite": Skill(
        lexicon.ADJECTIVES, _NUMBER_LENGTHS, lambda x: [lexicon.OPPOSITES[word] for word in x]
    ),
    "plural": Skill(
        lexicon.NOUNS, _NUMBER_LENGTHS, lambda x: [lexicon.PLURALS[word] for word in x]
    ),
    "kind": Skill(lexicon.NOUNS, _NUMBER_LENGTHS, lambda x: [lexicon.KIND_OF[word] for word in x]),
    "keep": Skill(lexicon.NOUNS, (4, 5), _keep),
    "sort": Skill(lexicon.NUMBERS, _NUMBER_LENGTHS, lambda x: sorted(x, key=int)),
    "next": Skill(
        lexicon.NUMBERS[:-1], _NUMBER_LENGTHS, lambda x: [str(int(word) + 1) for word in x]
    ),
}


def is_held_out(operands: Sequence[str]) -> bool:
    """Returns whether a list belongs to the held-out split; a pure function of the list."""
    return zlib.crc32(" ".join(operands).encode()) % HELD_OUT_SHARE == 0


def solve(problem: Problem) -> str:
    """Returns the only right answer to a problem, words separated by spaces."""
    return " ".join(TASKS[problem.task].solve(problem.operands, *problem.arguments))


def draw_problem(rng: random.Random, task: str, *, held_out: bool) -> Problem:
    """Returns a random problem.

    Args:
      rng: the source of randomness.
      task: a key of `TASKS`.
      held_out: whether the list must belong to the held-out split.
    """
    skill = TASKS[task]
    while True:
        operands = tuple(rng.sample(skill.pool, rng.choice(skill.lengths)))
        arguments: tuple[str, ...] = ()
        if task == "replace":
            new = rng.choice([word for word in skill.pool if word not in operands])
            arguments = (rng.choice(operands), new)
        elif task == "keep":
            arguments = (lexicon.KIND_PLURALS[lexicon.KIND_OF[rng.choice(operands)]],)
            if not 2 <= len(_keep(operands, *arguments)) < len(operands):
                continue
        if is_held_out(operands) == held_out:
            return Problem(task, operands, arguments)


def draw_problems(rng: random.Random, shares: Mapping[str, float], count: int) -> Iterator[Problem]:
    """Yields problems of the training split, each drawn when it is asked for.

    Args:
      rng: the source of randomness, which the caller may use in between.
      shares: task -> its share, as `client_profile` returns them.
      count: number of problems.
    """
    for _ in range(count):
        (task,) = rng.choices(list(shares), list(shares.values()))
        yield draw_problem(rng, task, held_out=False)


def phrase(problem: Problem, dialect: str) -> str:
    """Returns the instruction for a problem in a dialect."""
    names = dict(zip("ab", problem.arguments, strict=False))
    return lexicon.PHRASES[dialect][problem.task].format(x=" ".join(problem.operands), **names)


def client_profile(client_id: int, *, seed: int = 0) -> tuple[str, dict[str, float]]:
    """Returns a client's dialect and its share of each task: two or three tasks, with sum 1."""
    rng = random.Random(f"profile {seed} {client_id}")
    dialect = rng.choice(lexicon.DIALECTS)
    tasks = rng.sample(list(TASKS), rng.choice((2, 3)))
    shares = [rng.uniform(1.0, 4.0) for _ in tasks]
    return dialect, {task: share / sum(shares) for task, share in zip(tasks, shares, strict=True)}


def client_examples(client_id: int, *, num_examples: int, seed: int = 0) -> list[dict]:
    """Returns the training rows of one client; fewer rows are the first ones of more rows.

    Args:
      client_id: any integer from 0; the number of clients is not limited.
      num_examples: number of rows.
      seed: seed of the whole federation.

    Returns:
      Rows with instruction, response, task, dialect (text) and client (int).
    """
    dialect, shares = client_profile(client_id, seed=seed)
    rng = random.Random(f"rows {seed} {client_id}")
    drawn = draw_problems(rng, shares, num_examples)
    return [_row(problem, dialect, client=client_id) for problem in drawn]


def heldout_examples(num_examples: int, *, seed: int = 0) -> list[dict]:
    """Returns rows of the held-out split, with tasks and dialects as equally frequent as possible.

    The client of a held-out row is -1. Any `len(TASKS) * len(DIALECTS)` consecutive rows
    contain every pair of task and dialect once.
    """
    rng = random.Random(f"held out {seed}")
    pairs = [(task, dialect) for dialect in lexicon.DIALECTS for task in TASKS]
    rows = []
    for index in range(num_examples):
        task, dialect = pairs[index % len(pairs)]
        rows.append(_row(draw_problem(rng, task, held_out=True), dialect, client=-1))
    return rows


def client_size(client_id: int, *, seed: int = 0) -> int:
    """Returns the number of rows of a client of the default federation: 64 to 192."""
    return random.Random(f"size {seed} {client_id}").randint(64, 192)


def rows(num_clients: int = NUM_CLIENTS, *, num_heldout: int = 480, seed: int = 0) -> dict:
    """Returns the default federation as `datasets.Dataset`s: {"train": ..., "test": ...}.

    Args:
      num_clients: clients 0 to num_clients - 1, `client_size` rows each.
      num_heldout: rows of the common held-out set.
      seed: seed of the whole federation; another seed gives other clients and lists.

    Raises:
      ValueError: if there are no clients or no held-out rows.
    """
    return federation(
        num_clients,
        num_heldout,
        client_fn=lambda client: client_examples(
            client, num_examples=client_size(client, seed=seed), seed=seed
        ),
        heldout_fn=lambda num: heldout_examples(num, seed=seed),
    )


def federation(
    num_clients: int, num_heldout: int, *, client_fn: Callable, heldout_fn: Callable
) -> dict:
    """Returns generated rows as data sets of text: {"train": ..., "test": ...}; see `rows`.

    Args:
      num_clients: clients 0 to num_clients - 1.
      num_heldout: rows of the common held-out set.
      client_fn: client id -> its rows.
      heldout_fn: number of rows -> held-out rows.

    Raises:
      ValueError: if there are no clients or no held-out rows.
    """
    if num_clients < 1 or num_heldout < 1:
        raise ValueError(
            f"num_clients and num_heldout must be at least 1, got {num_clients} and "
            f"{num_heldout}; the default is 128 clients and 480 held-out rows"
        )
    train = [row for client in range(num_clients) for row in client_fn(client)]
    heldout = heldout_fn(num_heldout)
    return {"train": from_memory(train), "test": from_memory(heldout)}


def _row(problem: Problem, dialect: str, *, client: int) -> dict:
    """Returns one row of the table."""
    return {
        "instruction": phrase(problem, dialect),
        "response": solve(problem),
        "task": problem.task,
        "dialect": dialect,
        "client": client,
    }
