"""The meaning of fields that are left out."""

import numpy as np
import pytest

from fedjax_post.algorithms.fed_dtpt import fed_dtpt
from fedjax_post.data.builtin.corpus import build_tokenizer
from fedjax_post.hub.load import load_model, save_model
from fedjax_post.simulate.cohort import draw
from fedjax_post.study import Model, Spec, prompts
from fedjax_post.study.rows import make_sampler
from fedjax_post.study.trained import layer_range
from fedjax_post.testing.models import tiny_model


@pytest.mark.parametrize(("population", "expected"), [(10, 10), (128, 16)])
def test_without_a_cohort_size_sixteen_take_part_or_all(population, expected):
    sampler = make_sampler(Spec(), population)
    assert len(draw(sampler, population, seed=0, round=0)) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [(":", (0, 8)), ("4:", (4, 8)), ("2:6", (2, 6)), (" :3", (0, 3))]
)
def test_a_range_of_layers_may_leave_its_ends_out(text, expected):
    assert layer_range(text, 8) == expected


@pytest.mark.parametrize("text", ["4", "a:b", "1:2:3", ""])
def test_what_is_no_range_of_layers_is_refused(text):
    with pytest.raises(ValueError, match=f"adapter.layers={text} is no range"):
        layer_range(text, 8)


def embeddings(model):
    spec = Spec(model=model, method="fed_dtpt")
    return prompts.token_arguments(spec, fed_dtpt, build_tokenizer())["Embeddings"]


def test_embeddings_are_those_of_the_named_model(tiny_folder, tmp_path):
    table = load_model(tiny_folder).variables["params"]["embedding"]
    model = Model(str(tiny_folder), embeddings=str(tiny_folder))
    np.testing.assert_array_equal(embeddings(model), table)
    assert embeddings(Model(str(tiny_folder))) is None
    save_model(tmp_path, tiny_model())
    with pytest.raises(ValueError, match=f"model.embeddings={tmp_path} has 32 tokens"):
        embeddings(model.replace(embeddings=str(tmp_path)))
