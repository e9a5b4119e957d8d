"""Tasks of lm-eval: found by name or read from files, checked, and run.

A task file is data. What in it would run code is refused, unless the file is trusted:

| in the file | what it would run |
| --- | --- |
| a tag, such as `!function` | a function, of a module beside the file or of any other |
| a metric that lm-eval does not have, or `hf_evaluate` | a program that the hub keeps |
| `dataset_path: pandas` | what a pickle holds |
| `unsafe_code` | programs that the model writes |

Templates of files are rendered in jinja's sandbox. The tasks that lm-eval itself has may use
functions of their own, which are installed with it.
"""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.evaluate.harness import Harness, check_greedy

Json = dict[str, Any]
_SUFFIXES = (".yaml", ".yml")
_BOOTSTRAPS = 1000  # resamples for a standard error without a closed form
_PLAIN_TAGS = ("str", "int", "float", "bool", "null", "seq", "map")


class Tasks(NamedTuple):
    """Tasks with their data, ready to be run."""

    items: list[Any]  # lm_eval's tasks and groups of tasks
    trust_code: bool


def load_tasks(
    named: Sequence[str], *, folder: str | None = None, trust_code: bool = False
) -> Tasks:
    """Returns tasks, with their data read and everything checked that needs no model.

    Args:
      named: each a task, group or tag of lm-eval, a task's file (`.yaml`), or a folder of these.
      folder: where the files that tasks name as `data_files` are; None: the working directory,
        as lm-eval has it.
      trust_code: whether code that the files name may run.

    Raises:
      ImportError: without lm-eval, naming the extra that brings it.
      FileNotFoundError: for files that are not there.
      ValueError: for what is no task, with the nearest ones; for code that is not trusted; for
        tasks that cannot be run.
      OSError: for data that cannot be read.
    """
    _import_lm_eval()
    from lm_eval.tasks import TaskManager

    if not named:
        raise ValueError("tasks is empty; name a task of lm-eval or a task's file")
    paths = {name: files for name in named if (files := _files_of(name)) is not None}
    manager = TaskManager(include_defaults=len(paths) < len(named))
    items = []
    with _sandbox(trust_code):
        for name in named:
            if name not in paths:
                _check_known(name, manager.all_tasks)
                items += _load(manager, name, name)
                continue
            for path in paths[name]:
                config = _read_file(path, trust_code)
                _place_data(config, folder)
                items += _load(manager, config, str(path))
    for task in _leaves(items):
        _check_task(task, trust_code)
    return Tasks(items, trust_code)


def run_tasks(
    harness: Harness,
    tasks: Tasks,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    chat: bool = False,
    seed: int = 1234,
) -> Json:
    """Returns what `lm_eval.simple_evaluate` returns, without samples; as JSON holds it.

    Args:
      harness: the model.
      tasks: to run.
      num_fewshot: examples before each question; None: as each task says.
      limit: rows of each task, the first ones; None: all.
      chat: whether questions are written by the tokenizer's chat template.
      seed: of the choice of examples; 1234 is lm-eval's own.

    Raises:
      ValueError: for rows that cannot be scored, or a chat without a template.
    """
    from jinja2 import TemplateError
    from lm_eval.api.model import LM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    if chat and not harness.tokenizer.chat_template:
        raise ValueError(
            "template=chat: the tokenizer has no chat template; leave it out, or use a chat model"
        )
    LM.register(Harness)
    with _sandbox(tasks.trust_code), _one_process(), contextlib.redirect_stdout(sys.stderr):
        try:
            return simple_evaluate(
                harness,
                tasks=list(tasks.items),
                task_manager=TaskManager(include_defaults=False),
                num_fewshot=num_fewshot,
                limit=limit,
                apply_chat_template=chat,
                fewshot_random_seed=seed,
                log_samples=False,
                bootstrap_iters=_BOOTSTRAPS,
                confirm_run_unsafe_code=tasks.trust_code,
            )
        except (ValueError, TypeError, LookupError, TemplateError) as error:
            raise ValueError(f"the tasks cannot be carried out: {_told(error)}") from error


def _import_lm_eval() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise ImportError(
            "tasks need lm-eval; install the extra: pip install 'fedjax_post[eval]'"
        ) from None


def _files_of(name: str) -> list[Path] | None:
    """Returns a task's file or those of a folder; None for a name."""
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        if not found:
            raise FileNotFoundError(f"tasks={name}: the folder has no task's file (.yaml)")
        return found
    if path.suffix not in _SUFFIXES:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"tasks={name}: there is no such file")
    return [path]


def _check_known(name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name, known, 3) or [n for n in known if name in n][:3]
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(
        f"tasks={name} is neither a file nor a task of lm-eval {version('lm_eval')}{hint}; a "
        "task of your own is a file that ends in .yaml"
    )


def _read_file(path: Path, trust_code: bool) -> Json:
    """Returns the content of a task's file, with what it includes."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        if not trust_code:
            _refuse_tags(path, set())
        config = load_yaml(path)
    except (ValueError, OSError):
        raise
    except Exception as error:  # of the parser, and of a trusted file's imports
        raise ValueError(f"{path} cannot be read: {_told(error)}") from error
    if "group" in config or not isinstance(config.get("task"), str):
        raise ValueError(
            f"{path} is no task: it has {', '.join(sorted(map(str, config)))}; a file names one "
            "`task`, and several files or their folder are given in place of a group"
        )
    if not trust_code:
        _refuse_downloads(path, config)
    return config


def _refuse_tags(path: Path, seen: set[Path]) -> None:
    """Refuses a file with tags, by which YAML names code, and the files that it includes."""
    import yaml

    seen.add(path)
    text = path.read_text(encoding="utf-8")
    for token in yaml.scan(text):
        if isinstance(token, yaml.TagToken) and token.value not in {("!!", t) for t in _PLAIN_TAGS}:
            name = "".join(part or "" for part in token.value)
            line = text.splitlines()[token.start_mark.line].strip()
            raise ValueError(_refusal(path, f"{name} ({line})"))
    content = yaml.safe_load(text)
    included = content.get("include", []) if isinstance(content, Mapping) else []
    for name in included if isinstance(included, list) else [included]:
        if (other := path.parent / str(name)) not in seen:
            _refuse_tags(other, seen)


def _refuse_downloads(path: Path, config: Mapping[str, Any]) -> None:
    import lm_eval.api.metrics  # noqa: F401  fills the registry
    from lm_eval.api.registry import METRIC_REGISTRY

    for entry in config.get("metric_list") or []:
        name = entry.get("metric") if isinstance(entry, Mapping) else entry
        if name not in METRIC_REGISTRY or entry.get("hf_evaluate"):
            raise ValueError(_refusal(path, f"the metric {name}, a program of the hub"))
    if config.get("dataset_path") == "pandas":
        raise ValueError(_refusal(path, "dataset_path: pandas, which reads pickles"))


def _refusal(where: object, what: str) -> str:
    return f"{where} names code: {what}; it runs only with `trust_code`"


def _place_data(config: Json, folder: str | None) -> None:
    """Puts `data_files` that are relative into a folder."""
    given = config.get("dataset_kwargs") or {}
    if folder is None or "data_files" not in given:
        return

    def place(files: Any) -> Any:
        if isinstance(files, Mapping):
            return {split: place(each) for split, each in files.items()}
        if isinstance(files, list):
            return [place(each) for each in files]
        return files if "://" in files else str(Path(folder).expanduser() / files)

    config["dataset_kwargs"] = {**given, "data_files": place(given["data_files"])}


def _load(manager: Any, spec: str | Json, name: str) -> list[Any]:
    """Returns the task or tasks of a name or a file, which reads their data."""
    try:
        loaded = manager.load([spec])
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"tasks={name}: {_told(error)}; give the folder of its data as `data`"
        ) from error
    except OSError as error:
        raise OSError(
            f"tasks={name}: {_told(error)}; its data are on the hub: run it once with network, or "
            "write a task's file with local data"
        ) from error
    except Exception as error:
        raise ValueError(
            f"tasks={name} is no task that lm-eval {version('lm_eval')} can load: {_told(error)}"
        ) from error
    if isinstance(spec, str) and spec in loaded.get("groups", {}):
        return [loaded["groups"][spec]]
    return list(loaded["tasks"].values())


def _told(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def _leaves(items: Sequence[Any]) -> Iterator[Any]:
    for item in items:
        yield from item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item]


def _check_task(task: Any, trust_code: bool) -> None:
    name = task.task_name
    if getattr(task, "MULTIMODAL", False):
        raise ValueError(f"tasks={name} asks about images or sounds, and this is a text model")
    if getattr(task, "UNSAFE_CODE", False) and not trust_code:
        raise ValueError(_refusal(f"tasks={name}", "programs that the model writes"))
    if task.OUTPUT_TYPE == "generate_until":
        try:
            check_greedy(task.get_config("generation_kwargs") or {})
        except ValueError as error:
            raise ValueError(f"tasks={name}: {error}") from None


@contextlib.contextmanager
def _sandbox(trust_code: bool) -> Iterator[None]:
    """Renders lm-eval's templates in a sandbox, where they cannot reach Python's own objects."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    plain = utils.env
    if not trust_code:
        utils.env = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        utils.env.filters.update(plain.filters)
    try:
        yield
    finally:
        utils.env = plain


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    """Keeps lm-eval from forking for standard errors, which may hang under jax's threads."""
    name = "DISABLE_MULTIPROC"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
