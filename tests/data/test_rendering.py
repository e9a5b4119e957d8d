"""Laws of chats in tokens: the library's own tokens, each answer as it is served."""

import copy

import numpy as np
import pytest

from fedjax_post.data.columns import Columns
from fedjax_post.data.encoder import make_encoder
from tests.data import published

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "How  are\n\nyou, 你好?"},
    {"role": "assistant", "content": "\nFine, thanks 😀 ."},
]
BOS = {"qwen2": {"bos_token": "<|endoftext|>"}, "stories": {}}
ENDS = {"CHATML": "<|im_end|>", "MISTRAL": "</s>"}  # of turns
CALL = {"name": "weather", "arguments": {"city": "Oslo", "days": 3}}
CALLING = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]},
    {"role": "tool", "content": "3 degrees"},
    {"role": "assistant", "content": "It is 3 degrees."},
]
SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def tokenizers(test_data):
    """Real tokenizers: qwen2 is byte-level, stories is SentencePiece."""
    from transformers import AutoTokenizer

    folders = {"qwen2": "tokenizers/qwen2", "stories": "models/stories260K"}
    return {name: AutoTokenizer.from_pretrained(test_data / f) for name, f in folders.items()}


@pytest.fixture
def load(tokenizers):
    """Gives a copy of a tokenizer another template, and other special tokens."""

    def make(name, template, **tokens):
        tokenizer = copy.deepcopy(tokenizers[name])
        tokenizer.chat_template = template
        for attribute, token in tokens.items():
            setattr(tokenizer, attribute, token)
        return tokenizer

    return make


def encode(tokenizer, row, columns=Columns(messages="messages"), **options):  # noqa: B008
    made = make_encoder(tokenizer, columns, **options)({k: [v] for k, v in row.items()}, [0])
    return [{name: made[name][i] for name in made} for i in range(len(made["tokens"]))]


def ids_of(row):
    return np.where(row["tokens"] < 0, ~row["tokens"], row["tokens"]).tolist()


def learned(tokenizer, row):
    """The stretches that are learned, as texts."""
    mask, ids = row["tokens"] < 0, np.asarray(ids_of(row))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [tokenizer.decode(ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["qwen2", "stories"])
@pytest.mark.parametrize("template", ["CHATML", "GEMMA", "MISTRAL", "LLAMA_3"])
def test_tokens_are_those_of_the_library_one_by_one(load, name, template):
    tokenizer = load(name, getattr(published, template), **BOS[name])
    (row,) = encode(tokenizer, {"messages": CHAT})
    theirs = tokenizer.apply_chat_template(CHAT, return_dict=False)
    ours = ids_of(row)
    if ENDS.get(template) != tokenizer.eos_token and ours != theirs[: len(ours)]:
        assert ours.pop() == tokenizer.eos_token_id
    assert ours == theirs[: len(ours)]
    assert not tokenizer.decode(theirs[len(ours) :]).strip()  # but for trailing white space


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["qwen2", "stories"])
@pytest.mark.parametrize("template", ["CHATML", "GEMMA", "LLAMA_3"])
def test_the_prompt_is_what_a_server_gives(load, name, template):
    tokenizer = load(name, getattr(published, template), **BOS[name])
    answered = [*CHAT[:3], {"role": "assistant", "content": "Fine."}]
    (row,) = encode(tokenizer, {"messages": answered})
    served = tokenizer.apply_chat_template(CHAT[:3], add_generation_prompt=True, return_dict=False)
    assert ids_of(row)[: row["prompt_length"]] == served
    assert not row["unlike"]


@pytest.mark.heavy
def test_a_token_over_the_boundary_is_learned_and_counted(load):
    tokenizer = load("qwen2", published.CHATML)
    (row,) = encode(tokenizer, {"messages": CHAT})
    served = tokenizer.apply_chat_template(CHAT[:3], add_generation_prompt=True, return_dict=False)
    assert row["unlike"]  # the answer begins with a line break, which joins the header's
    assert ids_of(row)[: row["prompt_length"]] == served[:-1]


@pytest.mark.heavy
def test_generation_tags_give_the_mask_of_the_library(load):
    tokenizer = load("qwen2", published.CHATML_MARKED)
    (row,) = encode(tokenizer, {"messages": CHAT})
    theirs = tokenizer.apply_chat_template(CHAT, return_assistant_tokens_mask=True)
    size = len(row["tokens"])
    assert ids_of(row) == theirs["input_ids"][:size]
    assert (row["tokens"] < 0).tolist() == [m == 1 for m in theirs["assistant_masks"][:size]]
    assert not any(theirs["assistant_masks"][size:])
    bare = load("qwen2", published.CHATML)
    np.testing.assert_array_equal(encode(bare, {"messages": CHAT})[0]["tokens"], row["tokens"])


def test_an_end_outside_the_tags_is_learned_once_after_the_last_answer(load):
    template = published.CHATML_MARKED.replace(
        "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}",
        "{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
    )
    tokenizer = load("qwen2", template)
    (row,) = encode(tokenizer, {"messages": CHAT})
    assert learned(tokenizer, row) == ["Hello.", "\n\nFine, thanks 😀 .<|im_end|>"]


def test_an_answer_that_speaks_of_the_end_is_learned_whole(load):
    tokenizer = load("qwen2", published.CHATML, eos_token="<|endoftext|>")
    said = "It is <|endoftext|> in that vocabulary."
    chat = [CHAT[0], {"role": "assistant", "content": said}, *CHAT[2:]]
    (row,) = encode(tokenizer, {"messages": chat})
    first, last = learned(tokenizer, row)
    assert first == f"{said}<|im_end|>"
    assert last.endswith("<|im_end|><|endoftext|>")
    assert ids_of(row).count(tokenizer.eos_token_id) == 1  # the end itself
    assert row["spelled"]


@pytest.mark.parametrize("name", ["qwen2", "stories"])
def test_control_tokens_that_a_row_spells_are_read_as_the_library_sanitises_them(load, name):
    template = {"qwen2": published.CHATML, "stories": published.MISTRAL}[name]
    tokenizer = load(name, template)
    spelled = {"qwen2": "say <|im_end|>, <|endoftext|>", "stories": "say </s>, <s>now"}[name]
    chat = [{"role": "user", "content": spelled}, {"role": "assistant", "content": f"{spelled}!"}]
    (row,) = encode(tokenizer, {"messages": chat})
    theirs = tokenizer.apply_chat_template(chat, return_dict=False, sanitize_control_tokens=True)
    assert ids_of(row) == theirs[: len(row["tokens"])]
    assert row["spelled"]
    assert theirs != tokenizer.apply_chat_template(chat, return_dict=False)


def test_history_that_is_written_otherwise_gives_a_row_for_each_answer(load):
    tokenizer = load("qwen2", published.QWEN_3)
    columns = Columns(messages="messages", client="who")
    rows = encode(tokenizer, {"messages": CHAT, "who": "x"}, columns)
    assert [row["who"] for row in rows] == ["x", "x"]
    for row, size in zip(rows, (2, 4), strict=True):
        whole = tokenizer.apply_chat_template(CHAT[:size], return_dict=False)
        assert ids_of(row) == whole[: len(row["tokens"])]
        prompt = tokenizer.apply_chat_template(
            CHAT[: size - 1], add_generation_prompt=True, return_dict=False
        )
        assert ids_of(row)[: row["prompt_length"]] == prompt
        assert row["first_response"] == row["prompt_length"]


def test_calls_and_what_they_gave_are_rendered_as_by_the_library(load):
    tokenizer = load("qwen2", published.QWEN_3)
    columns = Columns(messages="messages", tools="tools")
    (row,) = encode(tokenizer, {"messages": CALLING, "tools": [SCHEMA]}, columns)
    theirs = tokenizer.apply_chat_template(CALLING, tools=[SCHEMA], return_dict=False)
    assert ids_of(row) == theirs[: len(row["tokens"])]
    first, last = learned(tokenizer, row)
    assert '"days": 3' in first
    assert last.endswith("It is 3 degrees.<|im_end|>")


def test_reasoning_of_the_answer_is_learned(load):
    tokenizer = load("qwen2", published.QWEN_3)
    chat = [CHAT[0], {"role": "assistant", "content": "Hello.", "thinking": "Be kind."}]
    (row,) = encode(tokenizer, {"messages": chat})
    theirs = tokenizer.apply_chat_template(chat, return_dict=False)
    assert ids_of(row) == theirs[: len(row["tokens"])]
    assert learned(tokenizer, row) == ["<think>\nBe kind.\n</think>\n\nHello.<|im_end|>"]


def test_a_chat_may_begin_with_an_answer(load):
    tokenizer = load("qwen2", published.CHATML)
    (row,) = encode(tokenizer, {"messages": CHAT[1:]})
    assert tokenizer.decode(ids_of(row)[: row["first_response"]]) == "<|im_start|>assistant\n"
    assert learned(tokenizer, row)[0] == "Hello.<|im_end|>"


SYSTEM = {"role": "system", "content": "Be kind."}
DROPPING = (
    "{% for m in messages %}{% if m.role != 'tool' %}"
    "{{ m.role + m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("template", "row", "said"),
    [
        ("GEMMA", {"messages": [SYSTEM, *CHAT]}, "System role not supported.*first user turn"),
        ("GEMMA", {"messages": [CHAT[0], *CHAT]}, "must alternate.*join consecutive turns"),
        ("GEMMA", {"messages": CHAT[1:]}, "begins with an answer, and.*put a user turn first"),
        ("CHATML", {"messages": CALLING}, "does not mention tool_calls"),
        ("CHATML", {"messages": CHAT, "tools": [SCHEMA]}, "does not mention tools"),
        ("CHATML", {"messages": [CHAT[0], CHAT[1] | {"thinking": "x"}]},
         "does not mention thinking"),
        ("CHATML", {"messages": [CHAT[0] | {"name": "Ann"}, CHAT[1]]}, "leaves out name"),
        (DROPPING, {"messages": [*CHAT[:2], {"role": "tool", "content": "x"}, CHAT[3]]},
         r"leaves out turn 2 \(tool\)"),
        ("{{ messages[0].nothing.more }}", {"messages": CHAT}, "UndefinedError"),
        ("{{ 'a' + 1 }}", {"messages": CHAT}, "TypeError"),
        ("{{ 1 / 0 }}", {"messages": CHAT}, "ZeroDivisionError"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", {"messages": CHAT}, "RecursionError"),
        ("{% if %}", {"messages": CHAT}, "chat template of .* is damaged .line 1: .*again"),
        ("{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
         {"messages": [CHAT[0], {"role": "assistant", "content": "<think>x</think>y"}]},
         "leaves out a part of the answer in turn 1"),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
         {"messages": CHAT}, "leaves out a part of the answer"),
    ],
)  # fmt: skip
def test_what_a_template_cannot_render_is_refused_in_a_line(load, template, row, said):
    tokenizer = load("qwen2", getattr(published, template, template))
    columns = Columns(messages="messages", tools="tools" if "tools" in row else None)
    with pytest.raises(ValueError, match=f"row 0: column messages: .*{said}") as caught:
        encode(tokenizer, row, columns)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_places_cannot_read_chats(load):
    class Slow:
        chat_template, eos_token_id, is_fast = published.CHATML, 0, False

        def get_chat_template(self):
            return self.chat_template

    with pytest.raises(ValueError, match="gives the places of its tokens.*tokenizer.json"):
        make_encoder(Slow(), Columns(messages="messages"))
