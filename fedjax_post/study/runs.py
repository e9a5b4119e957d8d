"""A run's folder, read back: what it was asked to do, and what came of it."""

from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.report.records import Record, read_records, read_summary
from fedjax_post.study import folder
from fedjax_post.study.files import HOST, check_trusted, read_spec
from fedjax_post.study.job import Job, prepare
from fedjax_post.study.spec import Spec


class Run(NamedTuple):
    """What a run's folder holds."""

    directory: Path
    spec: Spec
    records: list[Record]  # one a round
    summary: dict[str, Any] | None  # None until it has ended

    def resume(self, rounds: int | None = None) -> Job:
        """Returns the job that goes on where the run stands.

        Its `start` is the state that was reached, to be scored or exported.

        Args:
          rounds: in all; None for as many as were asked for.
        """
        spec = self.spec if rounds is None else self.spec.put({"training.rounds": rounds})
        return prepare(spec, directory=self.directory, resume=True)


def read(directory: str | Path, *, trust_code: bool = False, **supplied: Any) -> Run:
    """Returns what a run's folder holds.

    Args:
      directory: of the run.
      trust_code: whether functions that the folder names may be imported.
      **supplied: sections that its file could not hold, such as `method=my_factory` or
        `data=rows`, see `files`; and `url`, the host of a run at a provider.

    Raises:
      FileNotFoundError: if the folder holds no run.
      ValueError: for a damaged file, something that has to be supplied, or code or a host that
        nobody has named.
    """
    directory = Path(directory)
    heads = {"method": "method.name", "data": "data.source", "url": HOST}
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
