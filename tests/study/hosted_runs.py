"""Experiments whose target is asked, and what a provider's log and a run's ledger say of them."""

import json

from fedjax_post import study
from fedjax_post.data.builtin.corpus import build_tokenizer
from fedjax_post.disclosure.arrivals import Private, arrivals, index_of, offsets_of
from fedjax_post.provider.log import read_texts

TEXT = {"adapter.kind": "text_prompt", "adapter.prompt_text": "name the kind of these words:"}
SOFT = {"adapter.kind": "soft_prompt", "adapter.prompt_length": 2}
CMA = {"method.params": {"search_dim": 2, "generations": 1, "num_points": 2}}
SHOTS = {"method.params": {"num_shots": 2, "num_sets": 2, "shots_length": 12}}
EDITS = {"method.params": {"num_edits": 2}}
FEW = {"method.params": {"num_samples": 2}}
ONE = {"method.params": {"generator_rank": 2, "num_directions": 1}}
WORDS = {"adapter.candidates": ("name", "kind", "these", "words")}
METHODS = {
    "manual_prompt": TEXT,
    "in_context": TEXT | SHOTS | {"scoring.personal": True},
    "host_tuning": TEXT | {"method.params": {"num_epochs": 1}},
    "synthetic_tuning": TEXT | {"method.params": {"num_epochs": 1, "num_synthetic": 9}},
    "fed_dtpt": TEXT | WORDS | EDITS,
    "fed_prompt_search": TEXT | WORDS | EDITS,
    "bdpl": TEXT | WORDS | FEW,
    "fed_bpt": SOFT | CMA,
    "fed_avg_bbt": SOFT | CMA,
    "fed_bbpt": SOFT | ONE,
}


def spec_of(name, folder, rows, url=None):
    base = study.Spec(method=name).put(
        {
            "model.name": str(folder),
            "data.source": str(rows),
            "data.template": "{instruction}\\n",
            "data.labels": ("cat", "dog", "hen", "pig", "cow"),
            "training.batch_size": 2,
            "data.heldout_fraction": 0.25,
            "training.rounds": 2,
            "training.cohort_size": 2,
            "training.local_steps": 2,
            "scoring.every": 1,
            "scoring.batch_size": 4,
            "execution.executor": "host",
            "hosting.on_failure": "drop",
        }
    )
    spec = base.put(METHODS[name])
    return spec if url is None else spec.put({"hosting.url": url, "hosting.model": "tiny"})


def seen_by(log, rows):
    """What the provider's log shows, by its content alone."""
    read = [json.loads(line) for line in rows.read_text().splitlines()]
    private = [Private(row["instruction"], row["response"], "\n ") for row in read]
    tokenizer = build_tokenizer()
    return arrivals(read_texts(log), index_of(private), offsets_fn=offsets_of(tokenizer))


def told(directory):
    """What the ledger of a finished run says, over all purposes."""
    lines = [json.loads(line) for line in (directory / "disclosure.jsonl").read_text().splitlines()]
    names = ("queries", "private_tokens", "labels")
    return {name: sum(line[name] for line in lines if line["outside"]) for name in names}
