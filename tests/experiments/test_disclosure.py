"""Runs from flags: their ledgers, and the refusal before anything is sent."""

import json
from functools import partial

import jax
import pytest

from fedjax_post import study
from fedjax_post.core.access import Access
from fedjax_post.data.builtin.corpus import build_tokenizer
from fedjax_post.disclosure.meter import Form
from fedjax_post.experiments import train
from fedjax_post.experiments.flags import changes_in
from fedjax_post.simulate import programs
from fedjax_post.study import ledgers

CLOSED = [
    "--algorithm=fed_bpt",
    "--adapter=soft_prompt",
    "--prompt_length=3",
    "--search_dim=2",
    "--generations=1",
    "--num_points=2",
    "--labels=cat,dog,hen,pig,cow",
    "--num_rounds=1",
    "--eval_every=0",
    "--local_steps=1",
]
BDPL = [
    "--algorithm=bdpl",
    "--adapter=text_prompt",
    "--prompt_text=say :",
    "--candidates=say,cat",
    "--num_samples=2",
    "--labels=cat,dog,hen,pig,cow",
    "--eval_every=0",
    "--local_steps=1",
]
TEMPLATE = "--template={instruction} : say :"


@pytest.mark.heavy
def test_a_run_at_a_provider_has_its_ledger_in_its_folder(call, tmp_path):
    """`say cat` is two tokens, of a template of two and bos; a prompt of 3 comes before it."""
    assert call(*CLOSED, TEMPLATE, "--inference=provider", "--price=1000000") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    told = summary["disclosure"]
    assert summary["inference"] == "provider"
    (record,) = map(json.loads, (tmp_path / "run" / "records.jsonl").read_text().splitlines())
    queries = record["queries"]
    assert queries == told["queries"] > 0
    assert record["tokens_sent"] == queries * (1 + 2 + 3)
    assert told["private_tokens"] == queries * 2
    assert told["unique_private_tokens"] <= told["private_tokens"]
    assert told["cost"] == queries * (1 + 2 + 3 + 3 + 1)


def test_disclosure_is_refused_before_a_folder_is_made(call, tmp_path, capsys):
    given = [*CLOSED, TEMPLATE, "--fail_on_disclosure"]
    assert call(*given, "--inference=provider") == 2
    assert not (tmp_path / "run").exists()
    error = capsys.readouterr().err
    assert "fed_bpt needs EMBEDDINGS" in error
    assert "2 questions with 4 private tokens for one query per row" in error
    assert "--inference=client" in error


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("template", "around"),
    [
        ("{instruction} : say :", 3),
        ("say {prompt}\\n", 2),
        ("{instruction}", 0),
    ],
)
def test_a_template_is_counted_without_its_row(tiny_flags, template, around):
    given = [*tiny_flags, *CLOSED, f"--template={template}"]
    parts = study.prepare(study.Spec().put(changes_in(given))).parts
    table, tokenizer = parts.data.heldout, build_tokenizer()
    assert parts.form == Form(template=1 + around, prompt=3, answer=1, shot=around)
    form_of = partial(ledgers.form_of, parts.spec, tokenizer, table=table, longest=3)
    assert form_of(access={"target": Access.GRADIENTS}) == Form()
    # those that ask nothing in training ask when they are evaluated
    proxy = {"target": Access.LOGITS, "proxy": Access.GRADIENTS}
    for silent in (proxy, {"emulator": Access.GRADIENTS}):
        assert form_of(access=silent).template == 1 + around


@pytest.mark.heavy
def test_the_ledger_of_an_asynchronous_run_knows_who_visited(tiny_flags, tmp_path, monkeypatch):
    """Every question that a visit of the run asked is counted once, and no other."""
    asked = set()
    real = programs.visit_chunk

    def spied(algorithm, model, replica, total, chunk, *rest, **given):
        def note(tokens, mask, client_ids):
            rows = tokens[client_ids >= 0].reshape(-1, tokens.shape[-1])
            learned = mask[client_ids >= 0].reshape(-1, tokens.shape[-1])
            for row, answer in zip(rows, learned, strict=True):
                if answer.any():
                    asked.add(tuple(row[: answer.argmax()].tolist()))

        batches = chunk.data.batches
        jax.debug.callback(note, batches["tokens"], batches["loss_mask"], chunk.client_ids)
        return real(algorithm, model, replica, total, chunk, *rest, **given)

    monkeypatch.setattr(programs, "visit_chunk", spied)
    given = [flag for flag in tiny_flags if not flag.startswith("--cohort_size")]
    words = ["cat", "dog", "hen", "pig", "cow"]
    rows = [
        {"instruction": f"{one} {other}", "response": one, "client": number}
        for number, one in enumerate(words)
        for other in words
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given.append(f"--dataset={path}")
    slow = ["--buffer_size=2", "--concurrency=4", "--client_speeds=lognormal:1", "--num_rounds=4"]
    given += [*BDPL, TEMPLATE, *slow, "--inference=provider", f"--output_dir={tmp_path / 'run'}"]
    assert train.main(["train", *given]) == 0
    jax.effects_barrier()
    told = json.loads((tmp_path / "run" / "summary.json").read_text())["disclosure"]
    assert told["unique_private_tokens"] == 2 * len(asked)
