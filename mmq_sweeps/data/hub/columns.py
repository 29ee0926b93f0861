"""Read columns of a table: texts by dotted paths, and images without decoding or even reading them."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

# ``datasets`` turns a JSON column whose values are of several types into this: the values as JSON.
MIXED = "extension<arrow.json>"
NO_OPTION: Final = "nan"


@dataclass(frozen=True)
class TextColumn:
    """Column of texts or numbers, or of lists of them; ``path`` leads into structs, ``labels`` name whole numbers."""

    path: tuple[str, ...]
    labels: Sequence[str] | None = None
    mixed: bool = False

    @property
    def column(self) -> str:
        return self.path[0]

    def values(self, table: Any) -> list[Any]:
        """Return the values of an Arrow table's rows."""
        found = (_reach(value, self.path[1:]) for value in table.column(self.column).to_pylist())
        return [self._named(value) for value in found]

    def _named(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._named(one) for one in value]
        if self.mixed:
            return None if value is None else json.loads(value)
        known = self.labels is not None and isinstance(value, int) and 0 <= value < len(self.labels)
        return self.labels[value] if known else value  # type: ignore[index]


def text_column(key: str, name: str, rows: Any) -> TextColumn:
    """Return the column that the field ``key`` names; raise ValueError if it is not there or holds structs."""
    if name in rows.column_names:
        path: tuple[str, ...] = (name,)
    else:
        path = tuple(name.split("."))
    check_there(key, name, path[0], rows)
    found, feature = rows.data.schema.field(path[0]).type, rows.features[path[0]]
    for place, part in enumerate(path[1:], 1):
        found, feature = _inner(found), _inner_feature(feature)
        there = _names(found)
        if part not in there:
            inside = f"; {'.'.join(path[:place])} has {', '.join(there)}" if there else f": it holds {found}"
            raise ValueError(f"{key}={name}: there is no {'.'.join(path[: place + 1])}{inside}")
        found, feature = found.field(part).type, feature[part]
    if there := _names(_inner(found)):
        choices = ", ".join(f"{key}={name}.{part}" for part in there)
        raise ValueError(f"{key}={name}: each value has several fields; choose one: {choices}")
    return TextColumn(path, getattr(_inner_feature(feature), "names", None), str(_inner(found)) == MIXED)


def check_there(key: str, name: str, column: str, rows: Any) -> None:
    """Raise ValueError, with the columns there are, if ``column`` is not among them."""
    if column not in rows.column_names:
        raise ValueError(f"{key}={name}: there is no such column; the columns there: {', '.join(rows.column_names)}")


def _reach(value: Any, path: Sequence[str]) -> Any:
    for place, part in enumerate(path):
        if isinstance(value, list):
            return [_reach(one, path[place:]) for one in value]
        value = None if value is None else value[part]
    return value


def _inner(kind: Any) -> Any:
    """Return the type inside lists."""
    while hasattr(kind, "value_type") and hasattr(kind, "value_field"):
        kind = kind.value_type
    return kind


def _inner_feature(feature: Any) -> Any:
    while hasattr(feature, "feature") or (isinstance(feature, list) and feature):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    return feature


def _names(kind: Any) -> list[str]:
    """Return the fields of a struct; none for another type."""
    return [kind.field(place).name for place in range(kind.num_fields)] if hasattr(kind, "get_field_index") else []


@dataclass(frozen=True)
class ImageColumn:
    """Column of images: structs of bytes and path as ``datasets`` writes them, bytes, paths, or lists of these."""

    column: str

    def entries(self, table: Any) -> list[list[Any]]:
        """Return per row an entry for each image: its size if it lies in the table, a path, or None; reads no image."""
        values = table.column(self.column).combine_chunks()
        if str(values.type) == MIXED:
            return [[one or None for one in texts(value and json.loads(value))] for value in values.to_pylist()]
        if not hasattr(values.type, "value_field"):
            return [[entry] for entry in _entries(values)]
        lengths = [length or 0 for length in values.value_lengths().to_pylist()]
        every = iter(_entries(values.flatten()))
        return [[next(every) for _ in range(length)] for length in lengths]

    def read(self, row: Any, place: int) -> bytes:
        """Return the bytes of the image at ``place`` of a table of one row."""
        value = row.column(self.column)[0].as_py()
        value = value[place] if isinstance(value, list) else value
        found: bytes = value["bytes"] if isinstance(value, dict) else value
        return found


def image_column(key: str, name: str, rows: Any) -> ImageColumn:
    """Return the column of images ``name``; raise ValueError if it is not there or holds something else."""
    check_there(key, name, name, rows)
    kind = rows.data.schema.field(name).type
    inner = _inner(kind)
    if str(inner) not in ("null", "string", "large_string", "binary", "large_binary", MIXED) and "bytes" not in _names(
        inner
    ):
        images = [own for own, feature in rows.features.items() if type(_inner_feature(feature)).__name__ == "Image"]
        hint = f"; columns of images: {', '.join(images)}" if images else ""
        raise ValueError(f"{key}={name}: holds {kind}, which is no image (encoded bytes, or the path of a file){hint}")
    return ImageColumn(name)


def _entries(values: Any) -> list[Any]:
    import pyarrow.compute as pc

    inside = getattr(values.type, "num_fields", 0) and values.type.get_field_index("bytes") >= 0
    if not inside:
        if str(values.type) in ("string", "large_string"):
            return [path or None for path in values.to_pylist()]
        return pc.binary_length(values).to_pylist() if "binary" in str(values.type) else [None] * len(values)
    sizes = pc.binary_length(pc.struct_field(values, "bytes")).to_pylist()
    has_path = values.type.get_field_index("path") >= 0
    paths = pc.struct_field(values, "path").to_pylist() if has_path else [None] * len(sizes)
    return [path or None if size is None else size for size, path in zip(sizes, paths, strict=True)]


def texts(value: Any) -> tuple[Any, ...]:
    """Return a value, or each of a list, with numbers as text; anything else stays for the task to report."""
    if value is None:
        return ()
    return tuple(map(text, value)) if isinstance(value, list) else (text(value),)


def text(value: Any) -> Any:
    """Return a number as people write it (``3``, ``2.5``); anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return value
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def options(value: Any) -> tuple[Any, ...] | None:
    """Return the options in a list, or in the text of a Python list (as in MMMU); None for anything else."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    found = () if value is None else texts(value) if isinstance(value, list) else None
    return found if found is not None and all(isinstance(one, str) for one in found) else None


def options_of_columns(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return the options of columns, one each, without absent ones at the end: null, or ``nan`` as in MMBench.

    Raises ValueError for an absent one ahead of another: the letters of the others would be in doubt.
    """
    there = [not _absent(value) for value in values]
    if not all(there[: sum(there)]):
        raise ValueError(f"option {there.index(False) + 1} is missing, and one behind it is not")
    return tuple(text(value) for value in values[: sum(there)])


def _absent(value: Any) -> bool:
    return value is None or value in ("", NO_OPTION) or (isinstance(value, float) and math.isnan(value))


def joined(values: Iterable[Any], separator: str) -> str:
    """Join the texts of values and lists of values, without the absent ones."""
    every = (one for value in values for one in texts(value))
    return separator.join(str(one) for one in every if not _absent(one))


def chunks(rows: Any, columns: Sequence[str], size: int = 1000) -> Iterator[Any]:
    """Yield Arrow tables of ``size`` rows with some columns; of no column, tables without any."""
    yield from rows.select_columns(list(columns)).with_format("arrow").iter(batch_size=size)
