"""Laws of the built-in tasks, which make them fit to measure federations."""

import collections
import json
import random
from pathlib import Path

import pytest

from fedjax_post import hub
from fedjax_post.data.builtin import corpus, lexicon, tasks
from fedjax_post.evaluate.baselines import exact_match, majority_answers, nearest_answers

CLIENTS = 128
MAX_TOKENS = 32  # bos, instruction, line break, response, eos


@pytest.fixture(scope="module")
def train():
    return [
        row
        for client in range(CLIENTS)
        for row in tasks.client_examples(client, num_examples=tasks.client_size(client))
    ]


@pytest.fixture(scope="module")
def heldout():
    return tasks.heldout_examples(480)


@pytest.fixture(scope="module")
def tokenizer():
    return corpus.build_tokenizer()


def read(row):
    """The problem that a row asks, read back from its words alone."""
    form = lexicon.PHRASES[row["dialect"]][row["task"]]
    words = [word.strip(".,:;?!") for word in row["instruction"].split()]
    slots = [word.strip(".,:;?!") for word in form.split()]
    start = slots.index("{x}")
    end = len(words) - (len(slots) - start - 1)
    operands = tuple(words[start:end])
    around = slots[:start] + slots[start + 1 :]
    found = dict(zip(around, words[:start] + words[end:], strict=True))
    arguments = tuple(found[slot] for slot in ("{a}", "{b}") if slot in found)
    return tasks.Problem(row["task"], operands, arguments)


def test_every_response_is_the_solution_of_what_the_instruction_says(train, heldout):
    for row in [*train, *heldout]:
        assert tasks.solve(read(row)) == row["response"]


def test_splits_share_no_list(train, heldout):
    trained = {read(row).operands for row in train}
    held = {read(row).operands for row in heldout}
    assert not trained & held
    assert not any(map(tasks.is_held_out, trained))
    assert all(map(tasks.is_held_out, held))


def test_the_corpus_of_the_base_holds_no_held_out_list_and_no_instruction(heldout):
    rng = random.Random(0)
    held = {read(row).operands for row in heldout}
    for _ in range(500):
        problem = tasks.draw_problem(rng, rng.choice(list(tasks.TASKS)), held_out=False)
        question, answer = corpus.formula(rng, problem)
        assert problem.operands not in held
        assert answer == tasks.solve(problem)
        assert question.endswith(("=", "->"))
        assert "\n" not in question


def test_more_rows_begin_with_the_same_rows():
    few = tasks.client_examples(7, num_examples=5, seed=3)
    assert tasks.client_examples(7, num_examples=9, seed=3)[:5] == few
    assert tasks.client_examples(7, num_examples=5, seed=4) != few
    assert tasks.heldout_examples(70, seed=3)[:60] == tasks.heldout_examples(60, seed=3)


def test_there_is_no_last_client():
    (row,) = tasks.client_examples(10**12, num_examples=1)
    assert row["client"] == 10**12


def test_clients_differ_in_tasks_and_dialect(train):
    of_client = collections.defaultdict(collections.Counter)
    for row in train:
        of_client[row["client"]][row["task"], row["dialect"]] += 1
    assert len(of_client) == CLIENTS
    for counts in of_client.values():
        assert len({dialect for _, dialect in counts}) == 1
        assert 2 <= len(counts) <= 3
    assert {dialect for counts in of_client.values() for _, dialect in counts} == set(
        lexicon.DIALECTS
    )
    total = collections.Counter(row["task"] for row in train)
    share = {task: count / len(train) for task, count in total.items()}
    assert min(share.values()) > 0.5 / len(tasks.TASKS)
    # total variation from the population's mix: 0 if alike, at most 0.9 with ten tasks
    for client, counts in of_client.items():
        size = sum(counts.values())
        own = collections.Counter()
        for (task, _), count in counts.items():
            own[task] += count / size
        assert sum(abs(own[task] - share[task]) for task in tasks.TASKS) / 2 > 0.5, client


def test_the_held_out_set_is_balanced(heldout):
    counts = collections.Counter((row["task"], row["dialect"]) for row in heldout)
    assert len(counts) == len(tasks.TASKS) * len(lexicon.DIALECTS)
    assert set(counts.values()) == {480 // len(counts)}


def test_the_answer_cannot_be_had_without_the_skill(train, heldout):
    instructions, responses = ([row[name] for row in train] for name in ("instruction", "response"))
    questions, references = ([row[name] for row in heldout] for name in ("instruction", "response"))
    nearest = nearest_answers(instructions, responses, questions=questions)
    assert exact_match(nearest, references) < 0.20
    assert exact_match(majority_answers(responses, 480), references) < 0.15


def test_nearest_answers_finds_a_training_row_itself(train):
    asked = [row["instruction"] for row in train[:50]]
    answers = [row["response"] for row in train[:50]]
    assert nearest_answers(asked, answers, questions=asked) == answers


@pytest.mark.heavy
def test_every_word_of_the_tasks_is_one_token(tokenizer, train, heldout):
    for word in lexicon.OPERANDS:
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1, word
    bytes_used = set()
    for row in [*train, *heldout]:
        for name in ("instruction", "response"):
            tokens = tokenizer.tokenize(row[name])
            bytes_used |= {token for token in tokens if not token.startswith("Ġ")}
    assert bytes_used <= {".", ",", ":", "?"}
    assert len(tokenizer) <= 1024


def test_a_row_fits_the_length(tokenizer, train, heldout):
    for row in [*train[::8], *heldout]:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["instruction"]}],
            add_generation_prompt=True,
            return_dict=False,
        )
        response = tokenizer.encode(row["response"], add_special_tokens=False)
        assert len(prompt) + len(response) + 1 <= MAX_TOKENS


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "cat",
        " cat",
        "cat  hat\n\n\tpie ",
        "\ncat",
        "héllo wörld 😀 ▁ Ġ Ċ",
        "1 22 333 don't",
        "\0\x7f",
    ],
)
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_word_is_the_same_token_after_the_prompt_and_alone(tokenizer):
    chat = [{"role": "user", "content": "sort"}, {"role": "assistant", "content": "cat hat"}]
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert whole == "<s>sort\n cat hat</s>"
    assert tokenizer.tokenize(whole) == ["<s>", "Ġsort", "Ċ", "Ġcat", "Ġhat", "</s>"]
    assert tokenizer.tokenize("cat hat") == ["Ġcat", "Ġhat"]


def test_the_tokenizer_loads_from_its_folder(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    text = "reverse the list: cat hat ✓\n"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text, add_special_tokens=False)) == text
    assert loaded.chat_template == tokenizer.chat_template


def test_the_built_in_folder_is_small_and_holds_this_tokenizer(tokenizer):
    from transformers import AutoTokenizer

    folder = Path(hub.__file__).parent / "builtin"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4 * 2**20
    loaded = AutoTokenizer.from_pretrained(str(folder))
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template


def test_rows_are_datasets():
    splits = tasks.rows(3, num_heldout=60)
    assert set(splits) == {"train", "test"}
    assert splits["train"].column_names == ["instruction", "response", "task", "dialect", "client"]
    assert len(splits["test"]) == 60
    assert len(splits["train"]) == sum(map(tasks.client_size, range(3)))
    with pytest.raises(ValueError, match="num_clients"):
        tasks.rows(0)
