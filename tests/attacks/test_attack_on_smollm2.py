"""An attack on a real model: 49,152 tokens, tied embeddings, grouped queries, 8-bit codes."""

import jax
import numpy as np
import pytest
from attacks.victims import visit

from fedjax_post import attacks
from fedjax_post.adapters.lora import add_lora
from fedjax_post.hub import files
from fedjax_post.hub.load import load_model
from fedjax_post.hub.tokenizer import load_tokenizer


@pytest.mark.heavy
@pytest.mark.smollm2
def test_a_sentence_is_read_from_one_step_on_an_adapter():
    """In the first round, where B is 0; its rank is above the number of tokens."""
    pytest.importorskip("gguf")
    try:
        path = files.find_folder("smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    tokenizer = load_tokenizer(path)
    row = tokenizer("My pin is 4711, please tell nobody at the bank.")["input_ids"]
    model, params = add_lora(load_model(path), jax.random.key(0), rank=32, alpha=32.0)
    given, sent = visit(model, params, [np.asarray([row], np.int32)])
    given = given._replace(max_length=len(row), eos_id=tokenizer.eos_token_id)
    guess = attacks.dager().invert(given, sent)
    assert guess.rows == (tuple(row[:-1]),)
    assert guess.numbers["tokens"] == len(set(row[:-1]))
