"""Fit a table into a width: columns are left out by rank, and names are wrapped between words, before anything is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

# Between two columns.
GAP = 2
# Of a name that is cut because the terminal is narrower than it.
SHORTEST_PIECE = 8


@dataclass(frozen=True)
class Column:
    """Column of a table. ``rank`` 0 always stays; otherwise the highest rank is dropped first if the table is too wide.

    ``joins`` marks the columns that ``fitted`` may replace by one with their texts in words. ``least`` is the least width of
    a column that wraps, if its longest word is shorter.
    """

    name: str
    head: str
    cells: list[str]
    rank: int
    justify: Literal["left", "right"] = "right"
    wrap: bool = False
    joins: bool = False
    least: int = 0

    @property
    def natural(self) -> int:
        """The width of the longest line."""
        return max(cell_len(piece) for text in (self.head, *self.cells) for piece in text.split("\n"))

    @property
    def width(self) -> int:
        """The least width: of the longest word if words may wrap, else of the longest line."""
        if not self.wrap:
            return self.natural
        words = max((cell_len(word) for text in (self.head, *self.cells) for word in text.split()), default=0)
        return max(words, min(self.least, self.natural))


def fitted(columns: Sequence[Column], joined: Column, room: int) -> tuple[list[Column], list[str]]:
    """Return the columns that fit into ``room``, and the names of those left out.

    Columns are dropped down to rank 1. If those of ranks 0 and 1 do not fit, ``joined`` replaces the ones that join.
    """
    if width(columns) > room:
        columns = [replace(one, cells=[*map(_stacked, one.cells)]) if not one.wrap else one for one in columns]
    together = [joined, *(column for column in columns if not column.joins)]
    narrow = [replace(joined, least=0), *together[1:]]
    for layout, last in ((columns, 1), (together, 1), (together, 0), (narrow, 0)):
        kept = list(layout)
        while width(kept) > room and max(column.rank for column in kept) > last:
            kept.remove(max(kept, key=lambda column: column.rank))
        if width(kept) <= room:
            break
    return kept, [column.name for column in layout if column not in kept]


def width(columns: Sequence[Column]) -> int:
    """Return the least width of a table of ``columns``."""
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def drawn(columns: Sequence[Column], room: int) -> Table:
    """Draw ``columns`` as a table without frame; those that wrap give way if it would be wider than ``room``."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column, wide in zip(columns, _widths(columns, room), strict=True):
        # Only names may wrap, between words: a wrapped number is unreadable.
        table.add_column(
            Text(column.head), justify=column.justify, no_wrap=not column.wrap, width=wide, overflow="fold"
        )
    for texts in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, texts))
    return table


def _widths(columns: Sequence[Column], room: int) -> list[int]:
    """Return each column's width: rich would take from the widest column even what its words need."""
    widths = [one.natural for one in columns]
    excess = sum(widths) + GAP * (len(columns) - 1) - room
    # At worst a name is cut, never a number.
    for least in ([one.width for one in columns], [SHORTEST_PIECE] * len(columns)):
        spare = {place: widths[place] - least[place] for place, one in enumerate(columns) if one.wrap}
        for place in sorted(spare, key=lambda place: -spare[place]):
            taken = max(0, min(excess, spare[place]))
            widths[place] -= taken
            excess -= taken
    return widths


def _stacked(text: str) -> str:
    """Put each rule of a part with several bit-widths on a line of its own."""
    return text.replace(", ", ",\n")
