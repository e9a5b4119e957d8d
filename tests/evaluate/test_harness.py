"""lm-eval asks our models as it asks its own Hugging Face backend, and gets the same answers."""

import json

import numpy as np
import pytest

from fedjax_post.evaluate.harness import Harness
from fedjax_post.evaluate.tasks import load_tasks, run_tasks
from fedjax_post.hub.files import find_folder
from fedjax_post.hub.load import load_model
from fedjax_post.hub.tokenizer import load_tokenizer

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.heavy, pytest.mark.oracle]

STORY = "one day a little girl named lily found a needle in her room and said to her mom"
WORDS = STORY.split()
ROWS = [
    {
        "question": " ".join(WORDS[i : i + 5]),
        "choices": [WORDS[i % 7], f"the {WORDS[(i + 3) % 11]} and", "dog"],
        "answer": i % 3,
        "text": " ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 500 if i == 5 else 12)),
        "target": WORDS[i % 4],
    }
    for i in range(6)
]
COMMON = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "metadata": {"version": 1.0},
}
ASK = {"doc_to_text": "{{question}}:", **COMMON}
mean = lambda name: {"metric": name, "aggregation": "mean", "higher_is_better": True}
TASKS = {
    "choice": {
        **ASK,
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "num_fewshot": 2,
        "metric_list": [mean(name) for name in ("acc", "acc_norm", "acc_mutual_info")],
    },
    "last_word": {
        **ASK,
        "output_type": "loglikelihood",
        "doc_to_target": " {{target}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            mean("acc"),
        ],
    },
    "text": {
        **COMMON,
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [
            {"metric": "word_perplexity"},
            {"metric": "byte_perplexity"},
            {"metric": "bits_per_byte"},
        ],
    },
    "answer": {
        **ASK,
        "output_type": "generate_until",
        "doc_to_target": "target",
        "num_fewshot": 1,
        "generation_kwargs": {"until": ["\n", ". "], "max_gen_toks": 20, "do_sample": False},
        "metric_list": [mean("exact_match")],
    },
}
ASKED = [  # contexts and continuations
    ("say it:", " again"),
    ("say it: ", "again"),  # the space goes to what follows
    ("", "a text without a context"),
    ("say", "ing"),  # one word, cut within
    ("<s>say it", " after bos"),
    (" ".join(WORDS * 40), " and what is cut is on the left"),  # of all but the largest model
]

MODELS = [
    "builtin-instruct",  # neither bos nor a space before a text
    "stories260K",
    pytest.param("smollm2", marks=pytest.mark.smollm2),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, config in TASKS.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name} | config))
    return folder


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    """Our model and theirs, of one set of files."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    given = {}
    if request.param == "smollm2":
        pytest.importorskip("gguf")
        try:
            path = find_folder("smollm2")
        except FileNotFoundError as error:
            pytest.skip(str(error))
        folder, given = path.parent, {"gguf_file": path.name}
    elif request.param == "stories260K":
        path = folder = request.getfixturevalue("test_data") / "models" / request.param
    else:
        path = folder = find_folder(request.param)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given)
    tokenizer = load_tokenizer(path)
    with torch.no_grad():
        yield (
            Harness(load_model(path), {}, tokenizer),
            HFLM(theirs, tokenizer=load_tokenizer(path), device="cpu", batch_size=4),
        )


def requests(kind, asked):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, arguments, i) for i, arguments in enumerate(asked)]


def test_continuations_have_the_log_probabilities_of_the_hugging_face_backend(pair):
    ours, theirs = pair
    asked = requests("loglikelihood", ASKED[:-1] if ours.max_length > 1000 else ASKED)
    wanted, found = theirs.loglikelihood(asked), ours.loglikelihood(asked)
    np.testing.assert_allclose([f[0] for f in found], [w[0] for w in wanted], atol=1e-3)
    assert [f[1] for f in found] == [w[1] for w in wanted]
    assert ours.max_length == theirs.max_length
    assert ours.prefix_token_id == theirs.prefix_token_id


@pytest.mark.parametrize("chat", [False, True])
def test_scores_on_tasks_are_those_of_the_hugging_face_backend(pair, files, chat, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    ours, theirs = pair
    if chat and not ours.tokenizer.chat_template:
        pytest.skip("no chat template")
    load = lambda: load_tasks([str(files)], folder=str(files))
    limit = 2 if ours.max_length > 1000 else None  # rows of a large model
    found = run_tasks(ours, load(), chat=chat, limit=limit)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    wanted = simple_evaluate(
        theirs,
        bootstrap_iters=1000,
        limit=limit,
        tasks=load().items,
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template=chat,
        log_samples=False,
    )
    assert found["results"].keys() == TASKS.keys()
    for name, scores in wanted["results"].items():
        numbers = {key: value for key, value in scores.items() if isinstance(value, float)}
        assert numbers
        for key, value in numbers.items():
            assert found["results"][name][key] == pytest.approx(value, rel=1e-3), (name, key)
    assert found["versions"] == wanted["versions"]
