"""Scores of a model on tasks of lm-eval, which are comparable with those of other models."""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fedjax_post.evaluate.harness import Harness
from fedjax_post.evaluate.tasks import load_tasks, run_tasks
from fedjax_post.integrity import seal_line
from fedjax_post.report.table import columns
from fedjax_post.study import folder
from fedjax_post.study.served import serve
from fedjax_post.study.versions import commit, versions_of

Json = dict[str, Any]
_NONE: Mapping[str, Any] = MappingProxyType({})
_SEED = 1234  # lm-eval's own, for the choice of examples before a question
_PACKAGES = ("fedjax_post", "lm_eval", "datasets", "jax", "tokenizers", "transformers")


class TaskScores(NamedTuple):
    """Scores on tasks, and how they came about; docs/records.md documents the record's keys."""

    record: Json

    def table(self) -> str:
        """Returns the scores with their standard errors as a text table."""
        lines = [["", "version", "few-shot", "rows", "metric", "score", "stderr"]]
        for name, task in self.record["tasks"].items():
            about = [name, *(str(task[key]) for key in ("version", "num_fewshot", "rows"))]
            for metric, (score, error) in task["scores"].items():
                cells = [f"{number:.4f}" if number is not None else "" for number in (score, error)]
                lines.append([*about, metric, *cells])
                about = [""] * len(about)
        limit, chat = self.record["limit"], self.record["chat_template"]
        rows = "all rows" if limit is None else f"the first {limit} rows of each task"
        words = "with" if chat else "without"
        version = self.record["versions"]["lm_eval"]
        return f"{columns(lines)}\nlm-eval {version}, {rows}, {words} the chat template"


def evaluate_tasks(
    what: str | Path,
    tasks: Sequence[str],
    changes: Mapping[str, Any] = _NONE,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    trust_code: bool = False,
    command: Sequence[str] = (),
) -> TaskScores:
    """Returns the scores of a run's model, of an adapter's folder or of a base on lm-eval's tasks.

    In the folder of a run, they are added to `harness.jsonl`. Questions are written as the task
    says, and with `data.template` "chat" by the tokenizer's chat template.

    Args:
      what: as for `serve`.
      tasks: each a task, group or tag of lm-eval, a task's file (`.yaml`), or a folder of these.
      changes: of the specification, by path. `data.source` is the folder in which the files
        that tasks name are; `seed` chooses the examples before a question (1234).
      num_fewshot: examples before each question; None: as each task says.
      limit: rows of each task, the first ones; None: all.
      trust_code: whether code that a task's file names may run.
      command: the command line, for the record.

    Raises:
      ImportError: without the extra `eval`.
      ValueError, OSError: for tasks or a model that cannot be read or scored.
    """
    for name, value, least in (("num_fewshot", num_fewshot, 0), ("limit", limit, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    started, seed = time.monotonic(), changes.get("seed", _SEED)
    loaded = load_tasks(tasks, folder=changes.get("data.source"), trust_code=trust_code)
    served = serve(what, changes)
    if served.is_hosted:
        raise ValueError(
            f"tasks read the loss of texts, and the target of {what} is at a provider, which gives "
            "none; leave `tasks` out, or give the base model"
        )
    chat = served.spec.data.template == "chat"
    harness = Harness(served.model, served.params, served.tokenizer)
    found = run_tasks(harness, loaded, num_fewshot=num_fewshot, limit=limit, chat=chat, seed=seed)
    record = {
        "model": served.spec.model.name,
        "what": str(what),
        "tasks": _by_task(found),
        "limit": limit,
        "seed": seed,
        "chat_template": chat,
        "dtype": served.spec.model.dtype,
        "quantize": served.spec.model.quantize if "quantized" in served.model.variables else "none",
        "versions": versions_of(_PACKAGES),
        "commit": commit(),
        "command": shlex.join(command),
        "seconds": time.monotonic() - started,
    }
    scores = TaskScores(json.loads(json.dumps(record, default=str)))
    if (Path(what) / folder.SPEC).exists():
        with open(Path(what) / folder.HARNESS, "a", encoding="utf-8") as file:
            file.write(seal_line(scores.record))
    return scores


def _by_task(found: Json) -> Json:
    """Returns what lm-eval found, by task or group of tasks."""
    tasks = {}
    for name, results in found["results"].items():
        scores = {}
        for key, value in results.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = results.get(f"{metric}_stderr,{chosen}")
            label = metric if chosen == "none" else f"{metric} ({chosen})"
            scores[label] = [_number(value), _number(error)]
        tasks[name] = {
            "version": found["versions"].get(name, ""),
            "num_fewshot": found["n-shot"].get(name, ""),
            "rows": found["n-samples"].get(name, {}).get("effective", ""),
            "scores": scores,
            "config": found["configs"].get(name, {}),
        }
    return tasks


def _number(value: Any) -> float | None:
    return None if value is None or isinstance(value, str) else float(value)
