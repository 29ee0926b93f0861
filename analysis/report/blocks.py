"""The page's content without its layout: headings with sentences, charts, tables and samples below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.figures.plots import Bars, Plot
from analysis.output import plain


@dataclass(frozen=True)
class Column:
    """A table's column: ``digits`` after the decimal point, ``None`` for text. ``link`` is the text shown for a URL."""

    label: str
    digits: int | None = None
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table: ``rows[i][j]`` is a number, a text or ``None``.

    ``marks`` maps ``(i, j)`` to a warning shown beside that number. ``cells`` are the numbers of the rows' cells on the
    page, so that choosing a row pins its cell; empty if rows are no cells.
    """

    name: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict)
    cells: Sequence[int] = ()


def table_of(name: str, rows: pd.DataFrame, digits: Mapping[str, int] | None = None) -> Table:
    """Return ``rows`` as a table; fractions have four digits, whole numbers none, unless ``digits`` has a column's own."""
    usual = {"f": 4, "i": 0}
    columns = [
        Column(str(column).replace("_", " "), (digits or {}).get(str(column), usual.get(rows[column].dtype.kind)))
        for column in rows.columns
    ]
    return Table(name, columns, [[plain(value) for value in line] for line in rows.itertuples(index=False, name=None)])


@dataclass(frozen=True)
class Drawn:
    """A block that the page's script for its ``kind`` draws from plain values, in a ``tag`` with a ``label``."""

    kind: str
    content: Mapping[str, Any]
    label: str = ""
    tag: str = "figure"


@dataclass(frozen=True)
class Doubts:
    """Bars of one method with its ``lines`` and its ``doubts`` beside them."""

    bars: Bars
    lines: Sequence[str]
    doubts: Sequence[str]


@dataclass(frozen=True)
class Sample:
    """An item: its image as a ``data:`` URL or empty, the question or text, and the right answers."""

    id: str
    image: str = ""
    asked: str = ""
    right: Sequence[str] = ()


@dataclass(frozen=True)
class Samples:
    """Items of a family with the cells' answers: ``answers`` maps a cell's number to ``(text, score)`` an item.

    The page shows the cells in ``chosen``, beside the answer within the budget and the pinned cell.
    """

    family: int
    rows: Sequence[Sample]
    answers: Mapping[int, Sequence[tuple[str, float | None]]]
    chosen: Sequence[int]


@dataclass(frozen=True)
class More:
    """Blocks behind a ``title``, which readers open."""

    title: str
    blocks: Sequence[Plot | Table | Sentences]


@dataclass(frozen=True)
class Sentences:
    lines: Sequence[str]
    warning: bool = False


Block = Sentences | Plot | Table | Samples | Drawn | Doubts | More


@dataclass(frozen=True)
class Section:
    """A heading of ``level`` 2 or 3 and the blocks below it."""

    title: str
    blocks: Sequence[Block]
    level: int = 2


@dataclass(frozen=True)
class Page:
    """``data`` is shared by the page's scripts: the columns of all cells, and the families."""

    title: str
    summary: str
    sections: Sequence[Section]
    data: Mapping[str, Any] = field(default_factory=lambda: {"cells": {}, "families": []})
