"""A run that starts from an adapter starts from it to the bit, or is refused with a remedy."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from fedjax_post import study
from fedjax_post.study import Adapter, Data, Model, Scoring, Spec, Training


def spec_of(model, rows, **changes):
    base = Spec(
        model=Model(str(model)),
        data=Data(str(rows), heldout_fraction=0.25),
        adapter=Adapter(rank=2),
        training=Training(rounds=2, cohort_size=2, batch_size=2),
        scoring=Scoring(every=0),
    )
    return base.put(changes)


@pytest.fixture(scope="module", params=["lora", "soft_prompt"])
def first(request, tiny_folder, tiny_rows, tmp_path_factory):
    """A run of each kind of adapter that has ended, and what it deploys."""
    kind = {"adapter.kind": request.param, "adapter.prompt_length": 2}
    spec = spec_of(tiny_folder, tiny_rows, **kind)
    folder = tmp_path_factory.mktemp("runs") / "first"
    job = study.prepare(spec, directory=folder)
    study.carry_out(job, command=["test"])
    return spec, folder


@pytest.mark.heavy
def test_training_starts_where_the_adapter_ended(first, tmp_path):
    spec, folder = first
    for where in (folder, folder / "adapter"):
        job = study.prepare(spec.put({"adapter.init": str(where), "seed": 5}))
        assert f"from {where}" in str(job)
        fresh = study.prepare(spec.put({"seed": 5})).parts.params
        assert jax.tree.structure(job.parts.params) == jax.tree.structure(fresh)
        job.export(job.start, tmp_path / "again")
        (name,) = [path.name for path in (folder / "adapter").glob("*.safetensors")]
        before = load_file(folder / "adapter" / name)
        after = load_file(tmp_path / "again" / name)
        assert before.keys() == after.keys()
        for key, value in before.items():
            np.testing.assert_array_equal(after[key], value)


@pytest.mark.heavy
def test_what_does_not_fit_is_refused(first, tmp_path):
    spec, folder = first
    other = {"lora": {"adapter.rank": 3}, "soft_prompt": {"adapter.prompt_length": 3}}
    given = {"adapter.init": str(folder), **other[spec.adapter.kind]}
    with pytest.raises(ValueError, match="does not fit the experiment's adapter, for example at"):
        study.prepare(spec.put(given))
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json; give a folder"):
        study.prepare(spec.put({"adapter.init": str(tmp_path)}))
    with pytest.raises(ValueError, match="give the start as `model`"):
        study.prepare(spec.put({"adapter.init": str(folder), "adapter.kind": "full"}))
    if spec.adapter.kind == "lora":
        with pytest.raises(ValueError, match=r"another scale; give its `alpha`, 16 for rank 2"):
            study.prepare(spec.put({"adapter.init": str(folder), "adapter.alpha": 4.0}))
