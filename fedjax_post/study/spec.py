"""An experiment as data: one frozen value with everything that a run depends on.

    Spec(model="builtin", data="builtin", method="fed_adam", training=Training(rounds=60))

Each section covers one concern. A value that is not a section sets the section's first field:
`model="builtin"` means `Model("builtin")`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedjax_post.study.fields import check, kinds_of, meaning_of, replaced, setting, unknown
from fedjax_post.study.learning import Adapter, Data, Method, Model, Objective, Poison
from fedjax_post.study.running import Execution, Hosting, Privacy, Scoring, Training


@dataclasses.dataclass(frozen=True)
class Spec:
    """An experiment.

    A section may be given as the value of its first field.

    >>> spec = Spec(method="fed_adam", training=Training(rounds=3))
    >>> spec.method.name, spec.training.rounds
    ('fed_adam', 3)
    >>> spec.put({"training.rounds": 5}).at("training.rounds")
    5
    """

    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    adapter: Adapter = dataclasses.field(default_factory=Adapter)
    objective: Objective = dataclasses.field(default_factory=Objective)
    method: Method = dataclasses.field(default_factory=Method)
    poison: Poison = dataclasses.field(default_factory=Poison)
    training: Training = dataclasses.field(default_factory=Training)
    privacy: Privacy = dataclasses.field(default_factory=Privacy)
    hosting: Hosting = dataclasses.field(default_factory=Hosting)
    scoring: Scoring = dataclasses.field(default_factory=Scoring)
    execution: Execution = dataclasses.field(default_factory=Execution)
    seed: int = setting(
        0,
        "random seed of data, partition, cohorts, batches and the initial adapter",
        low=0,
        common=True,
    )

    def __post_init__(self):
        for name, kind in SECTIONS.items():
            given = getattr(self, name)
            if not isinstance(given, kind):
                object.__setattr__(self, name, kind(given))
        check(self)

    replace = replaced

    def put(self, changes: Mapping[str, Any]) -> "Spec":
        """Returns the experiment with some fields changed, by paths such as `training.rounds`.

        Raises:
          ValueError: for an unknown path, naming the nearest one, or a value out of range.
        """
        spec = self
        for path, value in changes.items():
            section, _, name = path.partition(".")
            if path not in PATHS and path not in SECTIONS:
                raise ValueError(unknown(path, [*SECTIONS, *PATHS]))
            if name:
                value = dataclasses.replace(getattr(spec, section), **{name: value})
            spec = dataclasses.replace(spec, **{section: value})
        return spec

    def at(self, path: str) -> Any:
        """Returns the value of a field by its path."""
        section, _, name = path.partition(".")
        return getattr(getattr(self, section), name) if name else getattr(self, section)


SECTIONS: Mapping[str, type] = {
    name: kind
    for name, kind in kinds_of(Spec).items()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}


def _paths() -> dict[str, dataclasses.Field]:
    own = {field.name: field for field in dataclasses.fields(Spec) if meaning_of(field)}
    return {
        f"{section}.{field.name}": field
        for section, kind in SECTIONS.items()
        for field in dataclasses.fields(kind)
    } | own


# path -> field, for all fields that hold a value, in order of definition
PATHS: Mapping[str, dataclasses.Field] = _paths()
