"""Files and jobs for fine-tuning are read as they are meant, or refused by name."""

import json
import random

import pytest
from tuned import CHAT, RECIPE, ROWS, lines, make_tiny

from fedjax_post.provider import formats, forms, job_requests, listing, uploads
from fedjax_post.provider.codec import encode_prompt
from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.training import Schedule
from fedjax_post.provider.training_rows import learned, read_lines, tokens_of


@pytest.fixture(scope="module")
def served():
    return make_tiny()


def test_a_form_is_read_as_it_was_written():
    content = b'{"a": 1}\r\n--not the boundary\r\n\r\n"\xff'
    body, kind = forms.write({"purpose": forms.Field(b"x"), "file": forms.Field(content, "a b.j")})
    assert forms.read(body, kind) == {"purpose": (b"x", ""), "file": (content, "a b.j")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body, kind: (body, "application/json"), "multipart/form-data, with its boundary"),
        (lambda body, kind: (body[:-10], kind), "ends before"),
        (lambda body, kind: (body.replace(b'name="a"', b""), kind), "without a name"),
        (lambda body, kind: (body.replace(b'"a"', b'"b"'), kind), "'b' twice"),
    ],
)
def test_what_is_no_form_is_refused(change, message):
    body, kind = forms.write({"a": forms.Field(b"1"), "b": forms.Field(b"2")})
    with pytest.raises(ValueError, match=message):
        forms.read(*change(body, kind))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "1 to 50000 lines of JSON; this one has 0"),
        (lines(ROWS[0]) + b"{", "Line 2: The body of a request must be a JSON object"),
        (lines(ROWS[0], CHAT), "Line 2: is of another kind"),
        (lines({"prompt": "a", "completion": ""}), "Line 1: `completion` must be a text"),
        (lines(ROWS[0] | {"weight": 2}), "Line 1: `weight`=2 is not supported"),
        (lines(CHAT | {"tools": [1]}), r"Line 1: `tools`=\[1\] is not supported"),
        (lines({"messages": CHAT["messages"][:1]}), "at least two"),
        (lines({"messages": [CHAT["messages"][0]] * 2}), "an answer of the assistant"),
        (lines({"messages": [{**CHAT["messages"][0], "weight": 1}] * 2}), "of an assistant"),
        (lines({"messages": [{"role": "tool", "content": "a"}] * 2}), "must be one of system"),
    ],
)
def test_rows_that_cannot_be_learned_are_refused_by_line(content, message):
    with pytest.raises(Refusal, match=message) as caught:
        read_lines(content)
    assert (caught.value.status, caught.value.param) == (400, "file")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"training_file": 3}, "training_file"),
        ({"validation_file": "file-1"}, "validation_file"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"suffix": "a b"}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"beta": 1}}, "hyperparameters.beta"),
        ({"hyperparameters": {}, "method": {"type": "supervised"}}, "hyperparameters"),
        ({"method": {"type": "dpo"}}, "method"),
        ({"method": {"type": "supervised", "supervised": {"hyperparameters":
            {"learning_rate_multiplier": 0}}}},
         "method.supervised.hyperparameters.learning_rate_multiplier"),
        ({job_requests.FILES: ["file-1"]}, job_requests.FILES),
        ({job_requests.FILES: [1]}, job_requests.FILES),
    ],
)  # fmt: skip
def test_jobs_that_cannot_be_done_as_asked_are_refused_by_name(given, param):
    body = {"model": "tiny", "training_file": "file-1"} | given
    with pytest.raises(Refusal) as caught:
        job_requests.read(body, RECIPE)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_auto_is_the_recipe_s_value_and_both_places_of_hyper_parameters_mean_the_same():
    hyper = {"n_epochs": 2, "batch_size": "auto"}
    old = {"hyperparameters": hyper}
    new = {"method": {"type": "supervised", "supervised": old}}
    made = [
        job_requests.read({"model": "m", "training_file": "f"} | one, RECIPE) for one in (old, new)
    ]
    assert made[0] == made[1]
    assert made[0].schedule == Schedule(2, RECIPE.batch_size, 1.0, 0)


def test_a_page_continues_after_the_last_entry_of_the_page_before():
    entries = [{"id": str(i)} for i in range(5)]
    first = listing.page(entries, {"limit": "3"})
    assert ([e["id"] for e in first["data"]], first["has_more"]) == (["4", "3", "2"], True)
    rest = listing.page(entries, {"after": first["last_id"]})
    assert ([e["id"] for e in rest["data"]], rest["has_more"]) == (["1", "0"], False)
    for query, param in (({"limit": "0"}, "limit"), ({"after": "9"}, "after")):
        with pytest.raises(Refusal) as caught:
            listing.page(entries, query)
        assert caught.value.param == param


def test_a_prompt_is_learned_with_the_tokens_with_which_it_is_asked(served):
    tokenizer = served.tokenizer
    (row,) = tokens_of(ROWS[0], tokenizer, None)
    assert row.ids[: row.prompt_length] == encode_prompt(tokenizer, ROWS[0]["prompt"])
    assert row.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row.ids[row.prompt_length : -1]).strip() == "cat"


def test_each_answer_of_a_chat_is_learned_unless_its_weight_is_0(served, monkeypatch):
    tokenizer = served.tokenizer
    template = "{% for m in messages %}{{ m.role }} : {{ m.content }}\n{% endfor %}" \
        "{% if add_generation_prompt %}assistant :{% endif %}"  # fmt: skip
    monkeypatch.setattr(tokenizer, "chat_template", template)
    user, said = CHAT["messages"]
    row = {"messages": [user, {**said, "weight": 0}, user, {**said, "content": "dog"}]}
    (one,) = learned(read_lines(lines(row)), tokenizer, name="f", context=64)
    assert "egg" in tokenizer.decode(one.ids[: one.prompt_length])
    assert tokenizer.decode(one.ids[one.prompt_length : -1]).strip() == "dog"
    assert len(learned(read_lines(lines(CHAT)), tokenizer, name="f", context=64)) == 1


def test_a_row_beyond_the_context_is_refused_by_line_and_file(served):
    with pytest.raises(Refusal, match="Line 2 of file-7 has .* context is 12"):
        learned([ROWS[0], ROWS[1] | {"completion": "cat " * 20}], served.tokenizer, name="file-7",
                context=12)  # fmt: skip


ODD = [
    None,
    True,
    -1,
    1.5,
    float("inf"),
    "",
    "x",
    [],
    [None],
    {},
    {"role": "user"},
    [[1]],
    "\ud800",
]


def mutated(rng, value):
    """A JSON value with one of its parts replaced."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        made = value.copy()
        key = rng.choice(list(made) if isinstance(made, dict) else range(len(made)))
        made[key] = mutated(rng, made[key])
        return made
    return rng.choice(ODD)


@pytest.mark.parametrize("seed", range(4))
def test_odd_rows_and_jobs_are_read_or_refused(seed, served):
    rng, statuses = random.Random(seed), []
    hyper = {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}}
    body = {"model": "tiny", "training_file": "f", job_requests.FILES: ["g"], "suffix": "a",
            "method": {"type": "supervised", "supervised": hyper}}  # fmt: skip

    def read_job(value):
        job_requests.read(formats.read_body(json.dumps(value).encode()), RECIPE)

    def read_rows(value):
        rows = read_lines(lines(*value) if isinstance(value, list) else lines(value))
        learned(rows, served.tokenizer, name="f", context=9)

    for _ in range(60):
        for read, value in ((read_job, body), (read_rows, [CHAT]), (read_rows, ROWS)):
            try:
                read(mutated(rng, value))
            except Refusal as refusal:
                statuses.append(refusal.status)
    assert 60 < len(statuses) < 180
    assert set(statuses) == {400}


def test_a_form_with_odd_bytes_is_read_or_refused():
    rng, body = random.Random(0), bytearray()
    whole, kind = forms.write(
        {"purpose": forms.Field(b"fine-tune"), "file": forms.Field(lines(*ROWS), "a.jsonl")}
    )
    outcomes = set()
    for _ in range(300):
        body[:] = whole
        for _ in range(rng.randrange(4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        try:
            read_lines(uploads.read_form(bytes(body), kind)[1])
            outcomes.add("read")
        except Refusal as refusal:
            outcomes.add(refusal.code)
    assert {"read", "invalid_form", "invalid_file_format"} <= outcomes
