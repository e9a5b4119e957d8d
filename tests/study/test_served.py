"""A question becomes the prompt that rows became in training."""

import pytest

from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.study import Data, Spec
from fedjax_post.study.served import Served, prompt_ids

QUESTION = [{"role": "user", "content": "say cat"}]


def served(tiny_folder, template):
    spec = Spec(data=Data("rows.jsonl", template=template))
    return Served(None, {}, load_tokenizer(tiny_folder), spec)


@pytest.mark.parametrize("field", ["instruction", "question"])
def test_a_question_fills_the_field_of_a_format_string(tiny_folder, field):
    model = served(tiny_folder, f"answer {{{field}}}\\n")
    ids = prompt_ids(model, QUESTION)
    assert model.tokenizer.decode(ids, skip_special_tokens=True).strip() == "answer say cat"


def test_several_fields_are_refused(tiny_folder):
    with pytest.raises(ValueError, match="has the fields a, b, and a question fills one"):
        prompt_ids(served(tiny_folder, "{a} {b}"), QUESTION)
