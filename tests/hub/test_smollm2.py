"""A real model from a package: it answers, its tokens are its tokenizer's, it fits in memory."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.adapters.lora import add_lora
from fedjax_post.hub import files
from fedjax_post.hub.adapter_config import CONFIG, WEIGHTS
from fedjax_post.hub.card import make_card
from fedjax_post.hub.gguf import header_facts, read_gguf
from fedjax_post.hub.load import load_config, load_model
from fedjax_post.hub.tokenizer import check_tokenizer, load_tokenizer
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.openness.read import load_passport

pytestmark = [pytest.mark.heavy, pytest.mark.smollm2]
INSTALL = files.PACKAGED["smollm2"].install


@pytest.fixture(scope="module")
def path():
    pytest.importorskip("gguf")
    try:
        return files.find_folder("smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_it_knows_the_capital_of_france(path):
    model, tokenizer = load_model("smollm2"), load_tokenizer("smollm2")
    check_tokenizer(tokenizer, model.config)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    prompt = jnp.asarray([ids])
    limits = {"max_new_tokens": 10, "eos_id": tokenizer.eos_token_id, "pad_id": 0}
    answer = model.answer({}, prompt, jnp.ones(prompt.shape, bool), **limits)
    assert "Paris" in tokenizer.decode(np.asarray(answer[0]))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [  # single digits, each apart from the space before it; line breaks together with indents
        ("in 1234", ["in", "Ġ", "1", "2", "3", "4"]),
        ("a\n    56", ["a", "ĊĠĠĠĠ", "5", "6"]),
        ("it's", ["it", "'s"]),
    ],
)
def test_text_is_cut_as_its_tokenizer_cuts_it(path, text, pieces):
    tokenizer = load_tokenizer(path)
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == pieces


def test_what_the_passport_says_of_the_file_is_in_its_header(path):
    said = load_passport("smollm2").conversion
    facts = dict(header_facts(read_gguf(path)))
    assert "HuggingFaceTB, apache-2.0" in facts["its header"]
    assert facts["its blocks"].removeprefix("mostly ") in said["form"].value
    assert facts["quantised by"] == "the header names nobody"
    assert said["original"].value == files.PACKAGED["smollm2"].hub
    card = make_card({WEIGHTS, CONFIG}, base="smollm2", weights="")
    assert f"base_model: {said['original'].value}\n" in card
    assert f"gguf_file={path.name!r})" in card


@pytest.mark.parametrize(
    ("dtype", "quantize"), [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "nf4")]
)
def test_loading_takes_little_more_memory_than_the_model(path, dtype, quantize):
    """Beside an interpreter that has loaded the libraries and computed something."""
    code = f"""
import resource, jax, gguf
from fedjax_post.hub.load import load_model
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
load_model("builtin", quantize={quantize!r}, dtype={dtype!r})
before = peak()
model = load_model({str(path)!r}, dtype={dtype!r}, quantize={quantize!r})
print(peak() - before, sum(leaf.nbytes for leaf in jax.tree.leaves(model.variables)))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, size = map(int, told.stdout.split())
    assert grown < 1.3 * size


def test_without_the_package_the_remedy_is_one_line(monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=f"is not installed, .*{INSTALL}$"):
        load_config("smollm2")


@pytest.mark.oracle
def test_logits_are_those_of_transformers(path):
    """From the same file, decoded and permuted back by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = np.asarray([[1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198]])
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids)).logits.numpy()
    found = load_model(path).logits({}, jnp.asarray(ids))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-4)  # of up to 38
    assert (jnp.argmax(found, -1) == wanted.argmax(-1)).all()


def test_mixed_products_change_little_of_what_it_says_and_learns(path):
    """8 bits an operand: logits differ by 1 % of their deviation, losses by far less."""
    text = "The capital of France is Paris. Water boils at 100 degrees. One, two, three, four."
    ids = jnp.asarray(load_tokenizer(path)(text)["input_ids"])[None]
    batch = {"tokens": ids, "loss_mask": jnp.ones(ids.shape, bool)}
    logits, losses = {}, {}
    for dtype in ("float32", "mixed"):
        base = load_model(path, dtype=dtype)
        logits[dtype] = base.logits({}, ids)
        model, params = add_lora(base, jax.random.key(0), rank=8, alpha=16)
        step = jax.jit(jax.value_and_grad(lambda p, m: sft_loss(p, m, batch, None)[0]))
        for _ in range(4):
            losses[dtype], grads = step(params, model)
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    error = logits["mixed"] - logits["float32"]
    assert 0 < jnp.sqrt(jnp.square(error).mean()) < 0.02 * logits["float32"].std()
    np.testing.assert_allclose(losses["mixed"], losses["float32"], rtol=0.01)
