"""Fixtures of several rooms: files of a model of a few thousand weights, and a few rows of data."""

import json

import jax
import pytest

from fedjax_post.data.builtin.corpus import build_tokenizer
from fedjax_post.hub.load import save_model
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.views import init_model

WORDS = "cat dog hen pig cow"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A Llama of one layer with the built-in tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = build_tokenizer()
    config = DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        max_positions=32,
    )
    save_model(folder, init_model(config, jax.random.key(0)))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory):
    """Four clients of six rows with two kinds of task."""
    words = WORDS.split()
    rows = [
        {
            "instruction": f"say {words[i % 5]}",
            "response": words[(i + k) % 5],
            "client": k,
            "task": ("even", "odd")[i % 2],
        }
        for k in range(4)
        for i in range(6)
    ]
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    import datasets

    datasets.disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


SMALL = (
    "--cohort_size=2 --batch_size=2 --lora_rank=2 --num_rounds=4 --algorithm=fed_avg "
    "--heldout_fraction=0.25 --eval_batch_size=4 --eval_every=2 --checkpoint_every=2"
)


@pytest.fixture(scope="session")
def tiny_flags(tiny_folder, tiny_rows):
    """Flags of a run that takes a second; later flags win."""
    return [f"--model={tiny_folder}", f"--dataset={tiny_rows}", *SMALL.split()]
