"""Soft prompts over the wire: the results of the local model, and no provider that ignores them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.core.access import Access
from fedjax_post.data.builtin.corpus import build_tokenizer
from fedjax_post.model.views import init_model
from fedjax_post.provider import soft_prompts
from fedjax_post.provider.calls import ProviderError
from fedjax_post.provider.hosted import connect
from fedjax_post.provider.line import Line
from fedjax_post.provider.served import make_served
from fedjax_post.provider.service import Provider
from fedjax_post.provider.serving import serve
from fedjax_post.provider.terms import Terms
from fedjax_post.testing.models import tiny_config


@pytest.fixture(scope="module")
def served():
    tokenizer = build_tokenizer()
    size = {"vocab_size": len(tokenizer), "num_layers": 1, "bos_id": tokenizer.bos_token_id}
    return make_served("tiny", init_model(tiny_config(**size), jax.random.key(0)), tokenizer)


@pytest.fixture(scope="module")
def url(served):
    with serve(Provider(served)) as url:
        yield url


PROMPT = {"prompt": {"embeddings": jax.random.normal(jax.random.key(1), (3, 16))}}


def asked(model, served):
    prompts = jnp.asarray([served.tokenizer("say cat")["input_ids"]], jnp.int32)
    mask = jnp.ones(prompts.shape, bool)
    best = np.argsort(served.model.next_scores(PROMPT, prompts, mask, jnp.arange(700)))[0, -3:]
    return np.asarray(model.next_scores(PROMPT, prompts, mask, jnp.asarray(best)))


@pytest.mark.heavy
def test_a_soft_prompt_at_a_provider_gives_the_scores_of_the_local_model(served, url):
    model = connect(url, "tiny", served.tokenizer, access=Access.EMBEDDINGS)
    np.testing.assert_allclose(asked(model, served), asked(served.model, served), atol=1e-5)


def test_an_answer_that_does_not_confirm_a_soft_prompt_is_an_error(served, url, monkeypatch):
    post = Line.post

    def ignorant(self, path, content):
        body = json.loads(content)
        del body[soft_prompts.FIELD]
        return post(self, path, json.dumps(body).encode())

    monkeypatch.setattr(Line, "post", ignorant)
    model = connect(url, "tiny", served.tokenizer, access=Access.EMBEDDINGS)
    with pytest.raises(ProviderError, match="did not read `fedjax_post_soft_prompt`"):
        asked(model, served)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no", "must be base64"),
        ("", "rows of 16 float32 numbers, has 0 bytes"),
        (soft_prompts.encode(np.ones((2, 7))), "rows of 16"),
        (soft_prompts.encode(np.full((1, 16), np.inf)), "must be finite"),
    ],
)
def test_what_is_no_soft_prompt_of_the_model_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        soft_prompts.decode(text, width=16)


def test_a_soft_prompt_keeps_every_bit():
    values = np.asarray(PROMPT["prompt"]["embeddings"])
    found = soft_prompts.decode(soft_prompts.encode(values), width=16)
    assert found.tobytes() == values.tobytes()


def test_chats_carry_no_soft_prompts(served, url):
    terms = Terms(style="chat")
    with pytest.raises(ValueError, match="give style=completions"):
        connect(url, "tiny", served.tokenizer, access=Access.EMBEDDINGS, terms=terms)
