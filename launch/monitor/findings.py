"""Show the results so far of a sweep in this process, drawn above its progress bars."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from launch.monitor.frontier import Results, results
from launch.monitor.plot import fits, plot
from mmq_sweeps.store.record import Record

# At most so many models and tasks have a line of their own.
FEW = 4
LEAST_PLOT, HIGHEST_PLOT = 10, 18
# The bars below, and the line that a terminal keeps free.
BARS = 3


def budget_of(settings: Mapping[str, Any]) -> float | None:
    """Return ``view.max_bpw`` from the settings of a sweep, which older sweeps lack."""
    budget: float | None = settings.get("view", {}).get("max_bpw")
    return budget


def best_so_far(found: Iterable[Results], max_bpw: float | None, ended: bool = False) -> list[str]:
    """Return a line for each model and task: its best cell within ``max_bpw``, or of all if None."""
    return [one.sentence(max_bpw, ended) for one in found if one.points][:FEW]


def wrapped(lines: Iterable[str], width: int) -> list[Text]:
    """Return ``lines`` broken at ``width``, continued with an indent."""
    return [Text(piece) for line in lines for piece in textwrap.wrap(line, width, subsequent_indent="  ")]


def has_plot(found: Sequence[Results], width: int, room: int) -> bool:
    """Return True if ``room`` lines hold a plot of the newest results, and there is something to draw."""
    return bool(found) and room > LEAST_PLOT and fits(found[0], width, LEAST_PLOT)


class Findings:
    """The finished cells of a sweep: the best within ``max_bpw`` of each model and task, and a plot of the newest.

    Give it each record with ``keep``. Drawing is cached, since bars are redrawn ten times a second, in a thread of their own.
    """

    def __init__(self, titles: Mapping[str, str], max_bpw: float | None) -> None:
        self._titles, self._max_bpw = titles, max_bpw
        self._records: dict[str, Record] = {}
        self._families: dict[str, str] = {}
        self._found: tuple[Results, ...] = ()
        self._drawn: tuple[tuple[Results, ...], tuple[int, int], RenderableType] | None = None

    def keep(self, *records: Record) -> None:
        """Add finished cells; one that is there already is replaced."""
        self._records |= {record.id: record for record in records}
        finished = ((self._titles[one.id], one) for one in self._records.values())
        self._found = results(finished, self._families)

    def __call__(self, console: Console) -> RenderableType:
        """Return the plot and the best cells, no higher than the screen with the bars below them."""
        found, size = self._found, (console.width, console.height)
        if self._drawn is None or self._drawn[0] is not found or self._drawn[1] != size:
            self._drawn = found, size, self._draw(found, *size)
        return self._drawn[2]

    def _draw(self, found: Sequence[Results], width: int, height: int) -> RenderableType:
        best = wrapped(best_so_far(found, self._max_bpw), width)[: max(0, height - BARS)]
        room = height - BARS - len(best)
        drawn = plot(found[0], width, min(room, HIGHEST_PLOT), self._max_bpw) if has_plot(found, width, room) else None
        return Group(*([] if drawn is None else [drawn]), *best)
