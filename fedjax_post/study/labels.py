"""The labels of an experiment's rows, spelled as its responses spell them."""

from functools import partial
from typing import Any

import numpy as np

from fedjax_post.data.load import Loaded
from fedjax_post.data.table import TokenTable, response_tokens
from fedjax_post.evaluate.choices import LONGEST, Choices, find_choices, right_choices
from fedjax_post.study.spec import Spec


def tables_of(data: Loaded) -> tuple[TokenTable, TokenTable]:
    """Returns the held-out rows and those of the clients."""
    clients: Any = getattr(data.clients, "clients", data.clients)
    assert data.heldout is not None  # guaranteed by `load_data`
    return data.heldout, clients.table


def find_labels(spec: Spec, data: Loaded, tokenizer: Any) -> Choices | None:
    """Returns the labels of the rows, held-out rows and clients' rows taken together, or None."""
    return find_choices(
        tables_of(data),
        eos_id=tokenizer.eos_token_id,
        decode_fn=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        encode_fn=lambda text: tokenizer.encode(text, add_special_tokens=False),
        labels=spec.data.labels,
    )


def check_labels(known: Choices, data: Loaded, tokenizer: Any) -> None:
    """Checks that whole responses of clients' rows are labels: a loss over labels has no other.

    Raises:
      ValueError: naming a response that is none, or one that begins with another token.
    """
    table, eos_id = tables_of(data)[1], tokenizer.eos_token_id
    decode_fn = partial(tokenizer.decode, skip_special_tokens=True)
    every = np.arange(len(table.length))
    every = every if table.is_cut is None else every[~table.is_cut]
    right = right_choices(known, table, every, eos_id=eos_id, decode_fn=decode_fn)
    if (others := every[right < 0]).size:
        ids = response_tokens(table, others[:1], width=LONGEST + 1)[0]
        text = decode_fn([i for i in ids.tolist() if i not in (-1, eos_id)])
        raise ValueError(
            f"labels={','.join(known.texts)}: the response of {others.size} of {every.size} rows "
            f"is none of them, such as {text!r}; list all, or leave these rows out"
        )
    first = response_tokens(table, every, width=1)[:, 0]
    if (others := every[first != known.tokens[right, 0]]).size:
        text = decode_fn(response_tokens(table, others[:1], width=1)[0].tolist())
        raise ValueError(
            f"labels={','.join(known.texts)}: {others.size} of {every.size} rows spell theirs by "
            f"another first token, such as {text!r}; write all responses of a label alike, spaces "
            "before it included"
        )
