"""Runs whose clients are sent nothing and keep models of their own: what is scored, and how."""

import jax
import numpy as np
import pytest

import fedjax_post
from fedjax_post import study
from fedjax_post.evaluate.scores import measure, scores_of
from fedjax_post.integrity import read_lines
from fedjax_post.simulate.personal import read_clients
from fedjax_post.study import costs, folder, plan


@pytest.fixture(scope="module")
def spec(tiny_folder, tiny_rows):
    return study.Spec(method="in_context").put(
        {
            "model.name": str(tiny_folder),
            "data.source": str(tiny_rows),
            "data.template": "{instruction}\\n",
            "data.labels": ("cat", "dog", "hen", "pig", "cow"),
            "data.heldout_fraction": 0.5,
            "adapter.kind": "text_prompt",
            "adapter.prompt_text": "name the kind of these words:",
            "method.params": {"num_shots": 2, "num_sets": 2, "shots_length": 12},
            **{"training.rounds": 2, "training.cohort_size": 2, "training.batch_size": 2},
            **{"scoring.every": 1, "scoring.personal": True},
        }
    )


@pytest.mark.heavy
def test_the_final_score_is_the_mean_over_the_clients_own_models_on_all_rows(spec, tmp_path):
    job = study.prepare(spec, directory=tmp_path / "run")
    parts = job.parts
    summary = study.carry_out(job)
    given = tmp_path / "run", parts.algorithm, parts.model, parts.data.clients
    kept = read_clients(*given, params=parts.params)
    scored = {line["client"] for line in read_lines(tmp_path / "run" / "clients.jsonl")}
    own = []
    for i, client_id in enumerate(kept.client_ids.tolist()):
        if parts.data.names[client_id] not in scored:
            continue  # it has no held-out rows
        client = jax.tree.map(lambda x, i=i: x[i], kept.states)
        deployed = fedjax_post.deployed(parts.algorithm, parts.model, parts.start, client)
        own.append(scores_of(measure(*deployed, parts.heldout), parts.heldout))
    for name in ("loss", "accuracy"):
        mean = np.mean([one[name] for one in own])
        np.testing.assert_allclose(summary["final"][name], mean, rtol=1e-5)
    assert len({one["loss"] for one in own}) > 1
    assert summary["clients"]["personal"]["rows"] == "own"
    assert summary["personal"]["loss"] != summary["final"]["loss"]
    assert not list((tmp_path / "run").glob("curve*"))
    with pytest.raises(FileNotFoundError, match="each of its clients kept a model of its own"):
        folder.adapter_of(tmp_path / "run")


def test_its_plan_and_its_cost_say_how_often_the_rows_are_read(spec):
    parts = study.prepare(spec.put({"scoring.clients": 2})).parts
    assert "by each of 2 clients' own models, since no model is shared" in plan.projection(parts)
    shared = study.prepare(spec.put({"method": "manual_prompt", "scoring.personal": False})).parts
    assert costs.expected(parts).scoring == costs.expected(shared).scoring * 3 / 2
