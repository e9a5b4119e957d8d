"""Scores by client: each client's scores are those of its rows, whoever computes them and how."""

import json

import jax
import numpy as np
import pytest

import fedjax_post
from fedjax_post import study
from fedjax_post.evaluate.scores import score
from fedjax_post.integrity import read_lines
from fedjax_post.simulate.personal import read_clients
from fedjax_post.study import Adapter, Data, Model, Scoring, Spec, Training, client_rows

SHARED = {"data.heldout_clients": 0.25}


def spec_of(model, rows, **changes):
    base = Spec(
        model=Model(str(model)),
        data=Data(str(rows), heldout_fraction=0.5),
        adapter=Adapter(rank=2),
        method="ditto(fed_avg)",
        training=Training(rounds=1, sampling="full", local_steps=2, batch_size=2),
        scoring=Scoring(every=0, personal=True, batch_size=8),
    )
    return base.put(changes)


@pytest.fixture(scope="module")
def ended(tiny_folder, tiny_rows, tmp_path_factory):
    """A run with one held-out client: its parts, its last state, its summary and its tables."""
    job = study.prepare(
        spec_of(tiny_folder, tiny_rows, **SHARED),
        directory=tmp_path_factory.mktemp("runs") / "ended",
    )
    summary = study.carry_out(job)
    lines = list(read_lines(job.directory / "clients.jsonl"))
    plan = job.parts.plan._replace(directory=job.directory)
    state = fedjax_post.restore(job.directory, job.parts.algorithm, job.parts.params).state
    return job.parts._replace(plan=plan), state, summary, lines


def of_table(lines, name):
    return {line["client"]: line for line in lines if line["table"] == name}


def assert_scores(line, expected):
    for name in ("loss", "exact_match"):
        assert line[name] == pytest.approx(expected[name], rel=1e-5)


@pytest.mark.heavy
def test_each_client_is_scored_on_its_own_held_out_rows(ended):
    parts, state, _, lines = ended
    found = of_table(lines, "shared")
    deployed = fedjax_post.deployed(parts.algorithm, parts.model, state)
    names = np.asarray(parts.heldout.table.client).astype(str)
    assert set(found) == set(parts.data.names) & set(names)
    for name, line in found.items():
        own = np.flatnonzero(names == name)
        assert (line["rows"], line["examples"]) == ("own", len(own))
        assert parts.data.names[line["id"]] == name
        assert_scores(line, score(*deployed, parts.heldout._replace(rows=own)))


@pytest.mark.heavy
def test_personal_models_side_by_side_score_as_one_after_the_other(ended):
    parts, state, summary, lines = ended
    found = of_table(lines, "personal")
    kept = read_clients(
        parts.plan.directory, parts.algorithm, parts.model, parts.data.clients, params=parts.params
    )
    assert {line["id"] for line in found.values()} <= set(kept.client_ids.tolist())
    assert len(found) > 1
    for line in found.values():
        (i,) = np.flatnonzero(kept.client_ids == line["id"])
        own = jax.tree.map(lambda x, i=i: x[i], kept.states)
        deployed = fedjax_post.deployed(parts.algorithm, parts.model, state, own)
        places = client_rows.places_of(parts.data, parts.heldout, np.array([line["id"]]))[0]
        rows = parts.heldout.rows[places]
        assert_scores(line, score(*deployed, parts.heldout._replace(rows=rows)))
    means = {name: np.mean([line[name] for line in found.values()]) for name in summary["personal"]}
    assert summary["personal"] == pytest.approx(means)


@pytest.mark.heavy
def test_held_out_clients_never_train_and_are_scored_on_all_their_rows(ended, tiny_rows):
    parts, state, summary, lines = ended
    (name,) = parts.data.apart.names
    rows = [json.loads(line) for line in tiny_rows.read_text().splitlines()]
    assert set(parts.data.names) == {str(row["client"]) for row in rows} - {name}
    table, partition = parts.data.clients.table, parts.data.clients.partition
    assert name not in np.asarray(table.client)[partition.indices].astype(str)
    assert name not in np.asarray(parts.heldout.table.client).astype(str)
    (line,) = of_table(lines, "heldout").values()
    assert (line["client"], line["id"], line["rows"]) == (name, None, "heldout_client")
    own = np.flatnonzero(np.asarray(table.client).astype(str) == name)
    assert line["examples"] == len(own)
    deployed = fedjax_post.deployed(parts.algorithm, parts.model, state)
    expected = score(*deployed, parts.heldout._replace(table=table, rows=own))
    assert_scores(line, expected)
    assert_scores(summary["heldout_clients"]["final"], expected)
    assert set(summary["heldout_clients"]["base"]) == set(expected)
    assert summary["population"]["heldout_clients"] == 1


@pytest.mark.heavy
def test_an_evaluation_makes_the_tables_of_the_run(ended):
    parts, _, summary, lines = ended
    found = study.evaluate(parts.plan.directory)
    assert found.scores["loss"] == pytest.approx(summary["final"]["loss"], rel=1e-5)
    for name, table in found.clients.items():
        assert len(table.lines) == len(of_table(lines, name)) > 0
        for line in table.lines:
            assert_scores(of_table(lines, name)[line.client], line.scores)
    shown = found.table()
    for word in ("held-out clients", "mean by examples", "worst 10 %", "variance", "Jain's index"):
        assert word in shown


@pytest.mark.heavy
def test_another_share_of_held_out_clients_is_another_run(ended):
    parts, *_ = ended
    with pytest.raises(ValueError, match="data.heldout_clients=0.5 differs from the run in"):
        study.prepare(
            parts.spec.put({"data.heldout_clients": 0.5}),
            directory=parts.plan.directory,
            resume=True,
        )
    again = study.prepare(
        study.read(parts.plan.directory).spec, directory=parts.plan.directory, resume=True
    )
    assert again.parts.data.apart.names == parts.data.apart.names


def test_clients_that_never_train_do_not_count_for_privacy_or_cohorts(tiny_folder, tiny_rows):
    shared = SHARED | {"method": "fed_avg", "scoring.personal": False}
    private = shared | {"privacy.noise_multiplier": 1.0, "privacy.clip": 1.0}
    job = study.prepare(spec_of(tiny_folder, tiny_rows, **private))
    assert job.parts.promised.population == len(job.parts.data.clients) == 3
    assert "1 more clients, which never train" in str(job)
    cohort = shared | {"training.cohort_size": 4, "training.sampling": "uniform"}
    with pytest.raises(ValueError, match="4 exceeds the population of 3"):
        study.prepare(spec_of(tiny_folder, tiny_rows, **cohort))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.heldout_clients": 0.01}, "heldout_clients=0.01 holds out none of 4 clients"),
        ({"data.heldout_clients": 0.9}, "heldout_clients=0.9 leaves none to train of 4 clients"),
        ({"method": "fed_avg"}, "scoring.personal=True: method=fed_avg has no models"),
    ],
)
def test_what_cannot_be_scored_is_refused(tiny_folder, tiny_rows, changes, message):
    with pytest.raises(ValueError, match=message):
        study.prepare(spec_of(tiny_folder, tiny_rows, **changes))


@pytest.fixture
def nameless(tmp_path):
    """A folder of two clients, and of held-out rows that are nobody's."""
    for stem, response in (("ann", "cat"), ("bob", "dog"), ("test", "cat")):
        rows = [{"instruction": f"say {k}", "response": response} for k in range(4)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{stem}.jsonl").write_text(text)
    return tmp_path


@pytest.mark.heavy
def test_rows_that_clients_train_on_are_scored_only_on_request(tiny_folder, nameless, tmp_path):
    changes = {"scoring.personal": False, "method": "fed_avg"}
    for number, clients in enumerate((None, 1)):
        spec = spec_of(tiny_folder, nameless, **changes, **{"scoring.clients": clients})
        job = study.prepare(spec, directory=tmp_path / f"run{number}")
        tables = study.carry_out(job)["clients"]
        if clients is None:
            assert tables == {}
        else:
            assert (tables["shared"]["rows"], tables["shared"]["clients"]) == ("training", 1)
    by_client = study.evaluate(tmp_path / "run0").clients["shared"]
    assert [(line.client, line.examples) for line in by_client.lines] == [("ann", 4), ("bob", 4)]


@pytest.mark.heavy
@pytest.mark.parametrize("baseline", ["local", "central"])
def test_references_train_without_the_held_out_clients(tiny_folder, tiny_rows, tmp_path, baseline):
    changes = {"method.baseline": baseline, "scoring.personal": False}
    spec = spec_of(tiny_folder, tiny_rows, **SHARED, **changes)
    summary = study.carry_out(study.prepare(spec, directory=tmp_path / "run"))
    if baseline == "central":
        assert summary["heldout_clients"]["final"]["loss"] > 0
        assert set(summary["clients"]) == {"shared", "heldout"}
    else:  # nobody's model is theirs
        assert summary["heldout_clients"] is None
        assert set(summary["clients"]) == {"personal"}
