"""Converts typed columns to text, where the type determines the text.

| type | text |
| --- | --- |
| text, null | unchanged |
| whole numbers | their digits |
| categories, such as `ClassLabel` | the name of the category |
| lists and objects of these | lists and objects of text |
| functions and calls of functions (`STRUCTURES`) | their JSON text |
| others: fractions, booleans, dates, bytes, images | refused, since several spellings exist |

Only the columns that are used are checked.
"""

import functools
import itertools
import json
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_post.data.columns import STRUCTURES, SWITCHES
from fedjax_post.data.stored import extend_columns, features_of, make_batch

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 3  # of the format of the cache on disk; increase it when `_text` changes
_REMEDY = "convert it to text, since it has several spellings"


def from_memory(rows: Iterable[Mapping[str, Any]]) -> "Dataset":
    """Returns rows in memory as a data set of text, as reading a file with them would.

    Args:
      rows: of text, whole numbers, None, and lists and dicts of these. A column with any
        other value keeps its type, and raises an error only where it is used.

    Raises:
      ValueError: for a column of values that do not fit into one table.
    """
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    rows = list(rows)
    fields, arrays = {}, {}
    for name in dict.fromkeys(itertools.chain.from_iterable(rows)):
        cells = [row.get(name) for row in rows]
        try:
            block = [_text({name: cell}) for cell in cells]
        except TypeError:
            arrays[name] = _make_typed(name, cells)
            fields[name] = pa.field(name, arrays[name].type)
        else:
            columns = extend_columns({}, block)
            arrays[name] = make_batch(block, columns).column(0)
            fields[name] = features_of(columns).arrow_schema.field(0)
    return Dataset(
        InMemoryTable.from_arrays(list(arrays.values()), schema=pa.schema(fields.values()))
    )


def as_text(
    rows: "Dataset",
    names: Iterable[str],
    *,
    flat: Collection[str] = (),
    row_fn: Callable[[int], object] = int,
) -> "Dataset":
    """Returns rows in which some columns are converted to text; text columns stay unchanged.

    Args:
      rows: of any types.
      names: the columns that are used.
      flat: those of them that must hold no lists or objects.
      row_fn: row number -> the name of the row in messages.

    Raises:
      ValueError: for a value without a unique text, with row, column, type and remedy.
    """
    import datasets
    from datasets.fingerprint import Hasher

    text = datasets.Value("string")
    wanted = {}
    for name in dict.fromkeys(names):
        feature = rows.features[name]
        if feature == text or (_is_text(feature) and name not in flat):
            continue
        is_deep = not isinstance(feature, datasets.Value | datasets.ClassLabel)
        wanted[name] = datasets.Json() if is_deep and name not in flat else text
    if not wanted:
        return rows
    features = {name: rows.features[name] for name in wanted}
    made = rows.select_columns(list(wanted)).map(
        functools.partial(_convert, features, flat, row_fn),
        batched=True,
        with_indices=True,
        features=datasets.Features(wanted),
        new_fingerprint=Hasher.hash([_VERSION, rows._fingerprint, sorted(wanted), sorted(flat)]),
        desc="to text",
    )
    return datasets.concatenate_datasets([rows.remove_columns(list(wanted)), made], axis=1)


def _convert(
    features: Mapping[str, Any],
    flat: Collection[str],
    row_fn: Callable[[int], object],
    batch: Mapping[str, list],
    places: list[int],
) -> dict[str, list]:
    """Returns the columns of a batch as text."""
    found: dict[str, list] = {}
    for name, feature in features.items():
        found[name] = []
        for place, cell in zip(places, batch[name], strict=True):
            try:
                if name in flat and isinstance(cell, list | dict):
                    raise TypeError("a list" if isinstance(cell, list) else "an object")
                found[name].append(_text({name: cell}, {name: feature})[name])
            except TypeError as error:
                raise ValueError(
                    f"row {row_fn(place)}: column {name} holds {error}; {_REMEDY}"
                ) from None
    return found


def _text(value: Any, feature: Any = None) -> Any:
    """Returns a value as text, or as a structure of text.

    Raises:
      TypeError: with a description of the value.
    """
    from datasets import ClassLabel

    if value is None or isinstance(value, str):
        return value
    if isinstance(feature, ClassLabel):
        return feature.names[value] if value >= 0 else None  # -1 marks a hidden label
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, list | tuple):
        inner = getattr(feature, "feature", None)
        return [_text(item, inner) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        inner = feature if isinstance(feature, dict) else {}
        return {
            key: json.dumps(item, ensure_ascii=False)
            if key in STRUCTURES and isinstance(item, list | dict)
            else _text(_switch(item) if key in SWITCHES else item, inner.get(key))
            for key, item in value.items()
        }
    raise TypeError(f"{str(value)[:40]!r} of type {type(value).__name__}")


def _switch(value: Any) -> Any:
    """Returns the text of a truth value, or of a whole number that is stored as a fraction."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    is_whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if is_whole else value


def _is_text(feature: Any) -> bool:
    """Returns whether the type of a column makes all its scalars text."""
    from datasets import Json, Value

    if isinstance(feature, Json):
        return True
    if isinstance(feature, Value):
        return feature.dtype in ("string", "large_string", "null")
    if isinstance(feature, dict):
        return all(map(_is_text, feature.values()))
    return hasattr(feature, "feature") and _is_text(feature.feature)


def _make_typed(name: str, cells: list) -> Any:
    """Returns a column that contains values other than text."""
    import pyarrow as pa

    try:
        return pa.array(cells)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        for number, cell in enumerate(cells):
            try:
                _text(cell)
            except TypeError as error:
                raise ValueError(f"row {number}: column {name} holds {error}; {_REMEDY}") from None
        raise
