"""What a sweep has yet to do: which cells, in which order, in which groups, and what they share."""

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

# With a number of jobs, a group may be so much longer than the mean, where that keeps together what is shared.
UNEVEN = 1.25
COUNTS = ("cells_per_job", "jobs", "workers")


@dataclass(frozen=True)
class Plan:
    """A sweep of ``asked`` configurations and what of its distinct cells is ``pending``, in the order they run.

    ``redo`` maps a pending cell that has a record to that record's SHA-256: the cell runs again as long as this is still
    its record. ``groups`` are the ids of pending cells, a group for each job.
    """

    asked: int
    sweep: Sweep
    pending: tuple[Cell, ...]
    redo: dict[str, str]
    batches: tuple[tuple[str, ...], ...]

    @property
    def done(self) -> int:
        """Cells that the store has and that do not run again."""
        return len(self.sweep.cells) - len(self.pending)


def make_plan(
    sweep: Sweep,
    read: Callable[[str], Record | None],
    sha: Callable[[str], str | None],
    launcher: Mapping[str, Any],
    asked: int | None = None,
) -> Plan:
    """What ``sweep`` has yet to do by the records that ``read`` finds, ``sha`` naming one that is to be replaced."""
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
    """How often something has to be done: ``needed`` where it is shared, ``naive`` with every cell on its own."""

    needed: int
    naive: int


def quantizations(cells: Sequence[Cell]) -> Work:
    """Quantizations of a part, with its calibration where the method has one."""
    keys = [cell.part_key(part) for cell in cells for part in cell.parts]
    return Work(len(set(keys)), len(keys))


def passes(cells: Sequence[Cell]) -> dict[str, Work]:
    """By part, how often it runs over the evaluation data: again only where it, or a part before it, is another."""
    paths: dict[str, list[tuple[str, ...]]] = {}
    for cell in cells:
        path = SharingPath.of(cell).path
        for depth, part in enumerate(cell.model["parts"], start=3):
            paths.setdefault(part, []).append(path[:depth])
    return {part: Work(len(set(found)), len(found)) for part, found in paths.items()}


def grouped(pending: Sequence[SharingPath], launcher: Mapping[str, Any]) -> list[list[SharingPath]]:
    """``pending`` in groups by the launcher's ``cells_per_job``, else its ``jobs`` or ``workers``, else as one group."""
    check_counts(launcher)
    if not pending:
        return []
    if most := launcher.get("cells_per_job"):
        return packed(pending, math.ceil(len(pending) / most), most)
    jobs = min(launcher.get("jobs") or launcher.get("workers") or 1, len(pending))
    return packed(pending, jobs, math.ceil(UNEVEN * len(pending) / jobs))


def check_counts(launcher: Mapping[str, Any]) -> None:
    """A ``ConfigError`` tells of every setting that is to be a number of something and is none."""
    values = {key: launcher.get(key) for key in COUNTS}
    if wrong := [
        f"hydra.launcher.{key}={value}: choose a whole number above 0."
        for key, value in values.items()
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1)
    ]:
        raise ConfigError(wrong)
