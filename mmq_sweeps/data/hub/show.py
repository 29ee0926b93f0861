"""Show a data set for the fields of ``HubData``: its splits, columns and first row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmq_sweeps.data.hub.source import Place, opened, source_of, splits_in

WIDTH = 60


def lines(place: Place) -> Iterator[str]:
    """Yield lines on a split, downloading it if need be; raise ValueError, with the choices, if it is not there."""
    source = source_of(place)
    yield f"splits here: {', '.join(splits_in(source.folder, place.name))}"
    rows = opened(source, place)
    yield f"{place.split}: {len(rows):,} rows, {source.files.kind}, in {source.folder}"
    types = {field.name: str(field.type) for field in rows.data.schema}
    first = rows.with_format("arrow")[:1].to_pylist()
    width = max(map(len, types), default=0)
    for name, kind in types.items():
        yield f"  {name:<{width}}  {_short(kind)}" + (f"  {_short(_value(first[0][name]))}" if first else "")


def _value(value: Any) -> str:
    """Format a value without the bytes of images."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(own)}" for key, own in value.items()) + "}"
    return "[" + ", ".join(map(_value, value)) + "]" if isinstance(value, list) else repr(value)


def _short(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
