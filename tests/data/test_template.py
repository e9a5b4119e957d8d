"""Laws of templates: where the response begins, what is learned, what is refused."""

import numpy as np
import pytest

from fedjax_post.data.columns import Columns, find_columns
from fedjax_post.data.encoder import make_encoder

ROW = {"instruction": "Add 1", "context": "to 2", "response": "3"}
COLUMNS = Columns("instruction", "response", "context")
CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "ciao"},
    {"role": "user", "content": "?"},
]


def encode(tokenizer, row, columns, **options):
    encoded = make_encoder(tokenizer, columns, **options)({k: [v] for k, v in row.items()}, [0])
    return {name: values[0] for name, values in encoded.items()}


def texts(tokenizer, encoded):
    """The whole row, and what of it is learned, as texts."""
    signed = encoded["tokens"]
    tokens = np.where(signed < 0, ~signed, signed)
    return tokenizer.decode(tokens), tokenizer.decode(tokens[signed < 0])


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("instruction context response category", Columns("instruction", "response", "context")),
        ("instruction input output", Columns("instruction", "output", "input")),
        ("prompt completion", Columns("prompt", "completion")),
        ("question answer", Columns("question", "answer")),
        ("input target", Columns("input", "target")),
        ("prompt messages", Columns(messages="messages")),
    ],
)
def test_usual_layouts_are_found(names, found):
    assert find_columns(names.split())._replace(label=None) == found


def test_wanted_columns_come_before_usual_names():
    names = ["instruction", "response", "text", "reply", "messages"]
    found = find_columns(names, Columns(prompt="text", response="reply"))
    assert (found.prompt, found.response, found.messages) == ("text", "reply", None)


def test_missing_columns_are_named_with_flag_and_choices():
    with pytest.raises(ValueError, match=r"prompt_column=q: no such column; there are a, b"):
        find_columns(["a", "b"], Columns(prompt="q"))
    with pytest.raises(ValueError, match=r"no response column.*there are text.*`response_column`"):
        find_columns(["text"], Columns(prompt="text"))


def test_plain_template_learns_the_response_and_its_end(tokenizer):
    whole, learned = texts(tokenizer, encode(tokenizer, ROW, COLUMNS))
    assert whole == "<s>### Instruction:\nAdd 1\n\n### Input:\nto 2\n\n### Response:\n3</s>"
    assert learned == "3</s>"


def test_empty_context_leaves_no_heading(tokenizer):
    whole, _ = texts(tokenizer, encode(tokenizer, ROW | {"context": None}, COLUMNS))
    assert whole == "<s>### Instruction:\nAdd 1\n\n### Response:\n3</s>"


def test_format_string_names_columns_and_roles(tokenizer):
    form = "{prompt} {context} = {instruction}?"
    whole, _ = texts(tokenizer, encode(tokenizer, ROW, COLUMNS, template=form))
    assert whole == "<s>Add 1 to 2 = Add 1?3</s>"


def test_prompt_is_tokenised_as_it_is_on_its_own(tokenizer):
    encoded = encode(tokenizer, ROW, COLUMNS, template="{prompt}:")
    prompt = encoded["tokens"][: encoded["prompt_length"]].tolist()
    assert prompt == tokenizer("Add 1:")["input_ids"]
    assert encoded["first_response"] == encoded["prompt_length"]


def test_end_of_sequence_is_not_doubled(tokenizer):
    _, learned = texts(tokenizer, encode(tokenizer, ROW | {"response": "3</s>"}, COLUMNS))
    assert learned == "3</s>"


def test_numbers_are_responses(tokenizer):
    _, learned = texts(tokenizer, encode(tokenizer, ROW | {"response": 3}, COLUMNS))
    assert learned == "3</s>"


def test_chat_template_is_used_where_there_is_one(chat_tokenizer):
    whole, learned = texts(chat_tokenizer, encode(chat_tokenizer, ROW, COLUMNS))
    assert whole == "<|user|>Add 1\n\nto 2<|assistant|>3</s>"
    assert learned == "3</s>"


def test_every_assistant_turn_is_learned_and_nothing_after_the_last(chat_tokenizer):
    encoded = encode(chat_tokenizer, {"messages": CHAT}, Columns(messages="messages"))
    whole, learned = texts(chat_tokenizer, encoded)
    assert whole == "<|user|>hi<|assistant|>yo</s>\n<|user|>bye<|assistant|>ciao</s>"
    assert learned == "yo</s>ciao</s>"
    prompt = chat_tokenizer.decode(encoded["tokens"][: encoded["first_response"]])
    assert prompt == "<|user|>hi<|assistant|>"
    assert len(encoded["tokens"]) - encoded["prompt_length"] == len("ciao") + 1


def test_sharegpt_chats_read_as_chats(chat_tokenizer):
    roles = {"user": "human", "assistant": "gpt"}
    shared = [{"from": roles[turn["role"]], "value": turn["content"]} for turn in CHAT]
    columns = Columns(messages="messages")
    one, other = (
        encode(chat_tokenizer, {"messages": chat}, columns)["tokens"] for chat in (CHAT, shared)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("response", ["", None, " \n"])
def test_rows_without_response_are_named(tokenizer, response):
    encoder = make_encoder(tokenizer, COLUMNS)
    batch = {name: [value] * 2 for name, value in ROW.items()} | {"response": ["3", response]}
    with pytest.raises(ValueError, match="row 41: column response holds no response"):
        encoder(batch, [40, 41])


def test_chats_without_answer_are_named(chat_tokenizer):
    with pytest.raises(ValueError, match="row 0: column messages holds no response"):
        encode(chat_tokenizer, {"messages": CHAT[:1]}, Columns(messages="messages"))


def test_chat_needs_a_chat_template(tokenizer):
    with pytest.raises(ValueError, match="template=chat needs a chat template"):
        make_encoder(tokenizer, COLUMNS, template="chat")
    with pytest.raises(ValueError, match="column messages needs a chat template"):
        make_encoder(tokenizer, Columns(messages="messages"))


def test_templates_that_rewrite_the_past_are_refused(chat_tokenizer):
    rewriting = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    columns = Columns(messages="messages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_tokenizer, "chat_template", rewriting)
        with pytest.raises(ValueError, match=r"renders the turns before turn 1 differently"):
            encode(chat_tokenizer, {"messages": CHAT}, columns)


def test_unknown_templates_are_refused(tokenizer):
    with pytest.raises(ValueError, match="template=alpaca is unknown; use auto, chat, plain"):
        make_encoder(tokenizer, COLUMNS, template="alpaca")
    with pytest.raises(ValueError, match=r"template names \{topic\}, which is not a column"):
        encode(tokenizer, ROW, COLUMNS, template="{topic}: ")


def test_real_tokenizer_keeps_the_boundary(test_data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(test_data / "models" / "stories260K")
    encoded = encode(tokenizer, ROW, COLUMNS, template="{prompt}\n")
    prompt = encoded["tokens"][: encoded["prompt_length"]].tolist()
    assert prompt == tokenizer("Add 1\n")["input_ids"]
    assert texts(tokenizer, encoded)[1].strip() == "3</s>"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("{prompt.foo}: ", r"template names \{prompt.foo\}, which is not a column"),
        ("{prompt[0]}: ", r"template names \{prompt\[0\]\}, which is not a column"),
        ("{prompt!r}: ", "a place that is not just the name of a column"),
        ("{}: ", "a place that is not just the name of a column"),
        ("{prompt: ", "is not a format string"),
    ],
)
def test_a_form_has_only_names_in_its_places(tokenizer, form, said):
    with pytest.raises(ValueError, match=said) as caught:
        encode(tokenizer, ROW, COLUMNS, template=form)
    assert "\n" not in str(caught.value)


def test_a_form_needs_a_place_for_what_changes_the_row(tokenizer):
    row = ROW | {"system": "Be brief."}
    columns = COLUMNS._replace(system="system")
    with pytest.raises(ValueError, match="row 0: column system changes the meaning of the row"):
        encode(tokenizer, row, columns, template="plain")
    whole, _ = texts(tokenizer, encode(tokenizer, row, columns, template="{system} {prompt}:"))
    assert whole == "<s>Be brief. Add 1:3</s>"
    bare, _ = texts(tokenizer, encode(tokenizer, ROW | {"system": ""}, columns, template="plain"))
    assert bare == texts(tokenizer, encode(tokenizer, ROW, COLUMNS, template="plain"))[0]


def test_columns_of_other_kinds_are_refused_where_they_hold_something(tokenizer):
    assert encode(tokenizer, ROW | {"images": []}, COLUMNS)
    with pytest.raises(ValueError, match="row 0: column images changes the meaning of the row"):
        encode(tokenizer, ROW | {"images": ["a.png"]}, COLUMNS)


def test_control_tokens_that_a_row_spells_are_text(tokenizer):
    row = ROW | {"instruction": "what is </s>?", "response": "</s> is the end"}
    encoded = encode(tokenizer, row, COLUMNS, template="{prompt} ")
    tokens = np.where(encoded["tokens"] < 0, ~encoded["tokens"], encoded["tokens"]).tolist()
    assert tokens.count(tokenizer.eos_token_id) == 1
    assert tokens[-1] == tokenizer.eos_token_id
    assert encoded["spelled"]
    assert tokenizer.decode(tokens) == "<s>what is </s>? </s> is the end</s>"
