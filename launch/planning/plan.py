"""Plan the rest of a sweep: pending cells, their order, their batches, and the work they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmq_sweeps.config.ordering import SharingPath, in_order, packed
from mmq_sweeps.config.sweep import Sweep
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.store.record import Record

# Longest group relative to the mean if a number of jobs is set; the slack keeps cells that share work together.
UNEVEN = 1.25
COUNTS = ("cells_per_job", "jobs", "workers")


@dataclass(frozen=True)
class Plan:
    """A sweep of ``asked`` configurations and its pending cells, in the order they run.

    ``redo`` maps a pending cell that already has a record to that record's SHA-256: the cell runs as long as this is
    still its record. ``batches`` holds the ids of the pending cells of each job.
    """

    asked: int
    sweep: Sweep
    pending: tuple[Cell, ...]
    redo: dict[str, str]
    batches: tuple[tuple[str, ...], ...]

    @property
    def done(self) -> int:
        """Number of cells that are in the store and do not run again."""
        return len(self.sweep.cells) - len(self.pending)


def make_plan(
    sweep: Sweep,
    read: Callable[[str], Record | None],
    sha: Callable[[str], str | None],
    launcher: Mapping[str, Any],
    asked: int | None = None,
) -> Plan:
    """Plan the pending cells of ``sweep``.

    ``read`` loads a cell's record and ``sha`` returns its SHA-256, which identifies a record to be replaced.
    """
    retry = sweep.settings["retry"]
    redo, pending = {}, []
    for placed in in_order(sweep.cells):
        record = read(placed.id)
        if record is None:
            pending.append(placed)
        elif retry == "all" or (retry == "failed" and not record.done):
            pending.append(placed)
            if (known := sha(placed.id)) is not None:
                redo[placed.id] = known
    groups = tuple(tuple(placed.id for placed in group) for group in grouped(pending, launcher))
    cells = tuple(placed.cell for placed in pending)
    return Plan(len(sweep.cells) if asked is None else asked, sweep, cells, redo, groups)


@dataclass(frozen=True)
class Work:
    """Number of runs of a step: ``needed`` with sharing, ``naive`` if each cell runs on its own."""

    needed: int
    naive: int


def quantizations(cells: Sequence[Cell]) -> Work:
    """Count the quantizations of parts, each including its calibration if the method needs it."""
    keys = [cell.part_key(part) for cell in cells for part in cell.parts]
    return Work(len(set(keys)), len(keys))


def passes(cells: Sequence[Cell]) -> dict[str, Work]:
    """Count each part's passes over the evaluation data: a part runs again only if it or an earlier part differs."""
    paths: dict[str, list[tuple[str, ...]]] = {}
    for cell in cells:
        path = SharingPath.of(cell).path
        for depth, part in enumerate(cell.model["parts"], start=3):
            paths.setdefault(part, []).append(path[:depth])
    return {part: Work(len(set(found)), len(found)) for part, found in paths.items()}


def grouped(pending: Sequence[SharingPath], launcher: Mapping[str, Any]) -> list[list[SharingPath]]:
    """Split ``pending`` into groups by the launcher's ``cells_per_job``, else its ``jobs`` or ``workers``.

    Without any of these settings, return a single group.
    """
    check_counts(launcher)
    if not pending:
        return []
    if most := launcher.get("cells_per_job"):
        return packed(pending, math.ceil(len(pending) / most), most)
    jobs = min(launcher.get("jobs") or launcher.get("workers") or 1, len(pending))
    return packed(pending, jobs, math.ceil(UNEVEN * len(pending) / jobs))


def check_counts(launcher: Mapping[str, Any]) -> None:
    """Raise a ``ConfigError`` listing every count in the settings that is not a whole number above 0."""
    values = {key: launcher.get(key) for key in COUNTS}
    if wrong := [
        f"hydra.launcher.{key}={value}: choose a whole number above 0."
        for key, value in values.items()
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1)
    ]:
        raise ConfigError(wrong)
