"""Laws of rows that become chats: formats, which tokens are learned, and refusals."""

import pytest

from fedjax_post.data.chats import read_chat
from fedjax_post.data.columns import Columns, find_columns
from fedjax_post.data.messages import read_tools, read_turn

QUESTION = {"role": "user", "content": "What color is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}
ASKED = Columns("prompt", "completion")


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def said(chat):
    return [(m["role"], m.get("content")) for m in chat.messages], chat.answers


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": [QUESTION, BLUE]}, Columns(messages="messages")),
        ({"prompt": [QUESTION], "completion": [BLUE]}, ASKED),
        ({"prompt": [QUESTION], "completion": BLUE["content"]}, ASKED),
        ({"prompt": QUESTION["content"], "completion": [BLUE]}, ASKED),
        ({"prompt": QUESTION["content"], "completion": BLUE["content"]}, ASKED),
        ({"prompt": QUESTION["content"], "completion": [QUESTION, BLUE]}, ASKED),
        ({"prompt": [QUESTION], "completion": [QUESTION, BLUE]}, ASKED),
    ],
)
def test_published_layouts_are_one_chat(row, columns):
    assert said(read_chat(row, columns)) == (
        [("user", "What color is the sky?"), ("assistant", "It is blue.")],
        [1],
    )


def test_only_the_completion_is_learned():
    row = {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]}
    assert read_chat(row, ASKED).answers == [3]


def test_history_and_system_stand_in_front_and_the_history_is_learned():
    row = {
        "system": "Be brief.",
        "history": [["2+2?", "4"]],
        "instruction": "Twice?",
        "output": "8",
    }
    columns = find_columns(list(row))
    assert said(read_chat(row, columns)) == (
        [
            ("system", "Be brief."),
            ("user", "2+2?"),
            ("assistant", "4"),
            ("user", "Twice?"),
            ("assistant", "8"),
        ],
        [2, 4],
    )


@pytest.mark.parametrize("weight", [0, "0", "0.0", "false", False])
def test_an_answer_of_no_weight_is_read_and_not_learned(weight):
    chat = [user("a"), assistant("b") | {"weight": weight}, user("c"), assistant("d")]
    assert read_chat({"messages": chat}, Columns(messages="messages")).answers == [3]
    with pytest.raises(ValueError, match="holds no response"):
        read_chat({"messages": chat[:2]}, Columns(messages="messages"))


@pytest.mark.parametrize("layout", ["explicit", "implicit", "spare prompt"])
def test_of_a_pair_only_what_differs_is_learned(layout):
    before = [user("Hi"), assistant("Hello."), QUESTION]
    row = {
        "explicit": {"prompt": before, "chosen": [BLUE], "rejected": [GREEN]},
        "implicit": {"chosen": [*before, BLUE], "rejected": [*before, GREEN]},
        "spare prompt": {
            "prompt": QUESTION["content"],
            "chosen": [*before, BLUE],
            "rejected": [*before, GREEN],
        },
    }[layout]
    columns = Columns("prompt" if "prompt" in row else None, "chosen")
    chosen = read_chat(row, columns, against="rejected")
    rejected = read_chat(row, columns._replace(response="rejected"), against="chosen")
    assert chosen.messages == [*before, BLUE]
    assert rejected.messages == [*before, GREEN]
    assert chosen.answers == rejected.answers == [3]


@pytest.mark.parametrize(
    ("turn", "role"),
    [
        ({"from": "human", "value": "a"}, "user"),
        ({"from": "chatgpt", "value": "a"}, "assistant"),
        ({"from": "GPT", "value": "a"}, "assistant"),
        ({"from": "bing", "value": "a"}, "assistant"),
        ({"from": "observation", "value": "a"}, "tool"),
        ({"role": "model", "content": [{"type": "text", "text": "a"}]}, "assistant"),
        ({"role": "user", "content": "a", "timestamp": "12", "refusal": None}, "user"),
    ],
)
def test_dialects_of_turns(turn, role):
    assert read_turn(turn, "messages").message == {"role": role, "content": "a"}


@pytest.mark.parametrize(
    "turn",
    [
        {"from": "function_call", "value": '{"name": "f", "arguments": {"n": 1}}'},
        {"role": "assistant", "function_call": {"name": "f", "arguments": '{"n": 1}'}},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": {"n": 1, "unset": None}}}],
        },
    ],
)
def test_calls_in_every_dialect_are_one(turn):
    function = {"name": "f", "arguments": {"n": 1}}
    assert read_turn(turn, "messages") == (
        {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
        True,
    )


def test_functions_may_be_json_text_and_bare():
    bare = {"name": "f", "parameters": {"type": "object"}}
    whole = [{"type": "function", "function": bare}]
    text = '[{"name": "f", "parameters": {"type": "object"}}]'
    assert read_tools([bare], "tools") == read_tools(text, "tools") == whole
    assert read_tools(whole, "tools") == whole
    assert read_tools("", "tools") is read_tools([], "tools") is read_tools(None, "tools") is None


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"messages": [{"speaker": "user", "text": "a"}]}, Columns(messages="messages"),
         "turn 0, holds the keys speaker, text; a turn has a role"),
        ({"messages": [user("a"), {"from": "narrator", "value": "b"}]},
         Columns(messages="messages"), "turn 1, has the unknown role narrator.*one of.*chatgpt"),
        ({"messages": [user("a"), assistant("b") | {"prefix": "true"}]},
         Columns(messages="messages"), "rename or remove prefix"),
        ({"messages": [user([{"type": "image", "image": "x"}]), BLUE]},
         Columns(messages="messages"), "a list of parts of type image"),
        ({"messages": [user(None), BLUE]}, Columns(messages="messages"), 
         r"\(user\) holds no content"),
        ({"messages": [user("a"), assistant("b") | {"weight": "0.5"}]},
         Columns(messages="messages"), "has the weight 0.5; use 0 or 1"),
        ({"messages": "text"}, Columns(messages="messages"), "holds a str, but a chat is a list"),
        ({"messages": None}, Columns(messages="messages"), "messages holds no response"),
        ({"prompt": None, "completion": "x"}, ASKED, "prompt holds no prompt"),
        ({"prompt": "q", "completion": {"text": ["Bo"]}}, ASKED, "completion holds an object"),
        ({"prompt": "q", "completion": 4.0}, ASKED, r"holds a float \(4.0\), which is not text"),
        ({"prompt": "q", "completion": True}, ASKED, "holds a boolean"),
        ({"prompt": "lost", "completion": [QUESTION, BLUE]}, ASKED,
         "prompt does not occur in the chat"),
        ({"prompt": "q", "completion": "a", "history": ["x"]},
         ASKED._replace(history="history"), r"holds no list of \[question, answer\]"),
        ({"messages": [{"role": "system", "content": "a"}, QUESTION, BLUE], "system": "b"},
         Columns(messages="messages", system="system"), "system differs from the system turn"),
    ],
)  # fmt: skip
def test_what_would_be_lost_or_misread_is_refused_by_name(row, columns, message):
    with pytest.raises(ValueError, match=message):
        read_chat(row, columns)
