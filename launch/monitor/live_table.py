"""Show a sweep that runs in other processes: ``status``'s table, updated live; a line for each cell if output is a file.

Writes to standard error, as the progress of a sweep in this process does.
"""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live

from launch.monitor import state_table
from launch.monitor.sweep_state import Snapshot, SweepReader
from mmq_sweeps.store.record import outcome

# Minimum seconds between two reads, and the largest share of time spent reading: reads of a large sweep are slow.
PAUSE_SECONDS = 1.0
SHARE = 0.1


class Foreground:
    """A live view of a sweep: call it often; it reads the sweep at intervals and shows changes.

    It names the best cell within ``max_bpw``.
    """

    def __init__(self, look: SweepReader, max_bpw: float | None = None) -> None:
        self.console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self.now = look()
        self._look, self._max_bpw = look, max_bpw
        self._next = 0.0
        self._told = {cell.id for cell in self.now.cells if cell.ended}
        self._live = Live(
            self._table(), console=self.console, auto_refresh=False, transient=True
        ) if self.console.is_terminal else None  # fmt: skip

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._refresh()
        if self._live is not None:
            self._live.stop()

    def __call__(self) -> None:
        if time.monotonic() >= self._next:
            self._refresh()

    def say(self, text: str) -> None:
        """Print a line that stays above the live table."""
        self.console.print(text, soft_wrap=True)

    def _refresh(self) -> None:
        began = time.monotonic()
        self.now = self._look()
        if self._live is None:
            self._tell_ended(self.now)
        else:
            self._live.update(self._table(), refresh=True)
        self._next = began + max(PAUSE_SECONDS, (time.monotonic() - began) / SHARE)

    def _table(self) -> RenderableType:
        return state_table.table(self.now, self.console.width, self.console.height, self._max_bpw)

    def _tell_ended(self, now: Snapshot) -> None:
        records = {
            cell.id: record
            for cell in now.cells
            if cell.ended and cell.id not in self._told and (record := self._look.record(cell.id)) is not None
        }
        titles = {cell.id: cell.title for cell in now.cells}
        for cell_id, record in sorted(records.items(), key=lambda entry: entry[1].created):
            self._told.add(cell_id)
            self.say(f"cell {len(self._told)} of {len(now.cells)}: {titles[cell_id]}: {outcome(record)}")
