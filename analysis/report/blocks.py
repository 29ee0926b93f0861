"""The page's content without its layout: headings with sentences, charts, tables and samples below them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.figures.plots import Plot


@dataclass(frozen=True)
class Column:
    """A table's column: ``digits`` after the decimal point, ``None`` for text. ``link`` is the text shown for a URL."""

    label: str
    digits: int | None = None
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table: ``rows[i][j]`` is a number, a text or ``None``. ``filters`` are the columns that readers can filter by.

    ``marks`` maps ``(i, j)`` to a warning shown beside that number.
    """

    name: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    filters: Sequence[str] = ()
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A cell's answer to an item, its score, and whether full precision gave the ``same`` answer."""

    text: str
    score: float | None
    same: bool


@dataclass(frozen=True)
class Sample:
    """An item: its image as a ``data:`` URL or empty, the question, the right answers, and each cell's answer."""

    id: str
    image: str
    asked: str
    right: Sequence[str]
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Samples:
    """Items with the answers of ``cells``, which are named in words, full precision first."""

    cells: Sequence[str]
    rows: Sequence[Sample]


@dataclass(frozen=True)
class Sentences:
    lines: Sequence[str]
    warning: bool = False


Block = Sentences | Plot | Table | Samples


@dataclass(frozen=True)
class Section:
    """A heading of ``level`` 2 or 3 and the blocks below it."""

    title: str
    blocks: Sequence[Block]
    level: int = 2


@dataclass(frozen=True)
class Page:
    title: str
    sections: Sequence[Section]
    notes: Sequence[str] = field(default=())


def plain(value: Any) -> Any:
    """Convert ``value`` for JSON: numpy scalars to Python's, NaN and infinity to ``None``."""
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
