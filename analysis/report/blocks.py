"""What the page is made of, apart from how it looks: headings with sentences, charts, tables and samples below them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.figures.plots import Plot


@dataclass(frozen=True)
class Column:
    """``digits`` after the point for numbers, ``None`` for text. ``link`` shows the text of the address in the cell."""

    label: str
    digits: int | None = None
    link: str = ""


@dataclass(frozen=True)
class Table:
    """``rows[i][j]`` is a number, a text or ``None``. ``filters`` are the columns that can be chosen from.

    ``marks`` maps ``(i, j)`` to a warning about that figure, which is shown beside it.
    """

    name: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    filters: Sequence[str] = ()
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a cell said to an item, its score, and whether full precision said the same."""

    text: str
    score: float | None
    same: bool


@dataclass(frozen=True)
class Sample:
    """An item: its image as a ``data:`` address or empty, what was asked, what is right, each cell's answer."""

    id: str
    image: str
    asked: str
    right: Sequence[str]
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Samples:
    """``cells`` in words, full precision first, and the answers of each to every sample."""

    cells: Sequence[str]
    rows: Sequence[Sample]


@dataclass(frozen=True)
class Sentences:
    lines: Sequence[str]
    warning: bool = False


Block = Sentences | Plot | Table | Samples


@dataclass(frozen=True)
class Section:
    """A heading of ``level`` 2 or 3 and what is below it."""

    title: str
    blocks: Sequence[Block]
    level: int = 2


@dataclass(frozen=True)
class Page:
    title: str
    sections: Sequence[Section]
    notes: Sequence[str] = field(default=())


def plain(value: Any) -> Any:
    """``value`` as JSON has it: numbers of numpy as Python's, missing ones as ``None``."""
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
