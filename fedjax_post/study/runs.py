"""Reads a run's folder: its specification, records and summary."""

from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.report.records import Record, read_records, read_summary
from fedjax_post.study import folder
from fedjax_post.study.files import HOST, WATCH, check_trusted, read_spec
from fedjax_post.study.job import Job, prepare
from fedjax_post.study.spec import Spec


class Run(NamedTuple):
    """The content of a run's folder."""

    directory: Path
    spec: Spec
    records: list[Record]  # one for each round
    summary: dict[str, Any] | None  # None until the run has ended

    def resume(self, rounds: int | None = None) -> Job:
        """Returns a job that continues the run from its last checkpoint.

        The state of that checkpoint is `start` of the job; it can be scored or exported.

        Args:
          rounds: total number of rounds; None for that of the specification.
        """
        spec = self.spec if rounds is None else self.spec.put({"training.rounds": rounds})
        return prepare(spec, directory=self.directory, resume=True)


def read(directory: str | Path, *, trust_code: bool = False, **supplied: Any) -> Run:
    """Returns the content of a run's folder.

    Args:
      directory: of the run.
      trust_code: whether functions that the specification names may be imported.
      **supplied: values that the file could not hold, such as `method=my_factory` or
        `data=rows`, see `files`; `url`, the host of a run at a provider; and `watch`, if the run
        sends its records elsewhere.

    Raises:
      FileNotFoundError: if the folder contains no run.
      ValueError: for a damaged file, a value that has to be supplied, or code or a host that the
        file names and the caller does not.
    """
    directory = Path(directory)
    heads = {"method": "method.name", "data": "data.source", "url": HOST, "watch": WATCH}
    given = {heads.get(name, name): value for name, value in supplied.items()}
    path = folder.spec_file(directory)
    spec = read_spec(path, supplied=given)
    check_trusted(spec, given, source=path, trust_code=trust_code)
    records = directory / "records.jsonl"
    summary = directory / "summary.json"
    return Run(
        directory,
        spec,
        read_records(directory) if records.exists() else [],
        read_summary(directory) if summary.exists() else None,
    )
