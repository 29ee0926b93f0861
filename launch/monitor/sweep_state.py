"""Read the current state of a sweep from its store, identically on every machine that sees the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch import sweep_file
from launch.monitor.frontier import Results, results
from launch.monitor.worker_states import states
from launch.slurm.jobs import Jobs, Queue
from launch.sweep_file import SweepFile
from launch.workers.heartbeat import State
from mmq_sweeps.identity.assignment import bits_label, part_order
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.reporting.compare import distinct_titles
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

QUEUED, RUNNING, DONE, FAILED, REFUSED = "queued", "running", "done", "failed", "refused"
# Class name in the launcher's yaml, as in launch/start.py.
SLURM = "SlurmLauncher"


@dataclass(frozen=True)
class CellState:
    """State of a cell: ``where`` names the worker that runs it, ``error`` is the class of its error if it failed."""

    id: str
    title: str
    state: str
    where: str | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        return self.state in (DONE, FAILED, REFUSED)


@dataclass(frozen=True)
class Group:
    """Cells assigned to the same job or worker; ``label`` names their common choices."""

    label: str
    cells: tuple[CellState, ...]

    def count(self, state: str) -> int:
        return sum(cell.state == state for cell in self.cells)


@dataclass(frozen=True)
class Snapshot:
    """State of a sweep at a moment. ``seconds_left`` is an estimate; None if no worker runs or no cell has ended yet.

    ``results`` are the finished cells by model and task.

    ``refused`` holds the problems for which its latest launch was refused before the first cell; cells that have no
    record are then refused.
    """

    sweep: str
    command: str
    created: str
    cells: tuple[CellState, ...]
    groups: tuple[Group, ...]
    workers: tuple[State, ...]
    seconds_left: float | None
    root: Path
    jobs: Jobs = field(default_factory=Jobs)
    refused: tuple[str, ...] = ()
    results: tuple[Results, ...] = ()

    def count(self, state: str) -> int:
        return sum(cell.state == state for cell in self.cells)

    @property
    def failures(self) -> dict[str, int]:
        """Number of failed cells by class of the error, the most frequent first."""
        found = Counter(cell.error or "unknown" for cell in self.cells if cell.state == FAILED)
        return dict(found.most_common())

    @property
    def ended(self) -> bool:
        return all(cell.ended for cell in self.cells)

    @property
    def running(self) -> bool:
        """True if a worker of the sweep runs, or another sweep runs a cell of this sweep."""
        return bool(self.count(RUNNING)) or any(worker.running for worker in self.workers)


@dataclass(frozen=True)
class StaticSweep:
    """Constant data of a sweep, cached between reads: titles by cell id, and the cell ids of each group."""

    written: SweepFile
    titles: dict[str, str]
    groups: tuple[tuple[str, tuple[str, ...]], ...]

    @staticmethod
    def of(written: SweepFile) -> StaticSweep:
        # A cell's id is a hash; compute it once.
        cells = {cell.id: cell for cell in written.sweep.cells}
        groups = tuple((_in_common([cells[one] for one in group]), group) for group in written.batches)
        return StaticSweep(written, distinct_titles(written.sweep.cells), groups)


@dataclass
class SweepReader:
    """A reader of a sweep's state, to be called repeatedly; caches records until their files change."""

    store: Store
    sweep_id: str
    _sweep: tuple[int, StaticSweep] | None = None
    _queue: Queue | None = None
    _records: dict[str, tuple[int, Record | None]] = field(default_factory=dict)
    _families: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> Snapshot:
        known = self._read_sweep()
        workers = states(self.store, self.sweep_id)
        at_hand = {state.cell: state.name for state in workers if state.running and state.cell is not None}
        # Cells that another sweep on the same store runs are locked, but appear in no worker state of this sweep.
        at_hand = {
            cell: owner.label or owner.host for cell, owner in self.store.locks.holders("cells").items()
        } | at_hand
        refused = sweep_file.refused(self.store.root, known.written)
        waiting = REFUSED if refused else QUEUED
        cells = {cell_id: self._cell(cell_id, known, at_hand, waiting) for cell_id in known.titles}
        return Snapshot(
            sweep=known.written.id,
            command=known.written.command,
            created=known.written.created,
            cells=tuple(cells.values()),
            groups=tuple(Group(label, tuple(cells[one] for one in group)) for label, group in known.groups),
            workers=tuple(workers),
            seconds_left=_seconds_left(cells.values(), workers),
            root=self.store.root,
            jobs=self._jobs(known, cells.values()),
            refused=refused,
            results=results(self._finished(cells.values()), self._families),
        )

    def _finished(self, cells: Iterable[CellState]) -> Iterator[tuple[str, Record]]:
        for cell in cells:
            record = self.record(cell.id)
            if cell.state == DONE and record is not None:
                yield cell.title, record

    def _jobs(self, known: StaticSweep, cells: Collection[CellState]) -> Jobs:
        """Return the SLURM jobs; skips the query if the sweep has ended or was last launched elsewhere."""
        left = {cell.id for cell in cells if cell.state == QUEUED}
        if all(cell.ended for cell in cells) or not str(known.written.launcher.get("_target_", "")).endswith(SLURM):
            return Jobs()
        self._queue = self._queue or Queue(self.store, self.sweep_id)
        return self._queue(left)

    def record(self, cell_id: str) -> Record | None:
        """Return the record of a cell as of the last read."""
        return self._records.get(cell_id, (0, None))[1]

    def _read_sweep(self) -> StaticSweep:
        changed = (sweep_file.folder(self.store.root, self.sweep_id) / sweep_file.NAME).stat().st_mtime_ns
        if self._sweep is None or self._sweep[0] != changed:
            self._sweep = changed, StaticSweep.of(sweep_file.read(self.store.root, self.sweep_id))
        return self._sweep[1]

    def _cell(self, cell_id: str, known: StaticSweep, at_hand: dict[str, str], waiting: str) -> CellState:
        record, title = self._read_record(cell_id), known.titles[cell_id]
        again = known.written.redo.get(cell_id)
        if record is not None and (again is None or self.store.record_sha(cell_id) != again):
            error = None if record.done else str((record.error or {}).get("class"))
            return CellState(cell_id, title, DONE if record.done else FAILED, error=error)
        if where := at_hand.get(cell_id):
            return CellState(cell_id, title, RUNNING, where=where)
        return CellState(cell_id, title, waiting)

    def _read_record(self, cell_id: str) -> Record | None:
        try:
            changed = self.store.record_path(cell_id).stat().st_mtime_ns
        except FileNotFoundError:
            return None
        if cell_id not in self._records or self._records[cell_id][0] != changed:
            self._records[cell_id] = changed, self.store.summary(cell_id)
        return self._records[cell_id][1]


def _seconds_left(cells: Iterable[CellState], workers: Sequence[State]) -> float | None:
    """Estimate the time left from the pace of running workers, each measured by its own clock."""
    pace = sum((one.done + one.failed) / one.seconds for one in workers if one.running and one.seconds > 0)
    remaining = sum(not cell.ended for cell in cells)
    if not remaining:
        return 0.0
    return remaining / pace if pace else None


def _in_common(cells: Sequence[Cell]) -> str:
    """Label the choices that all ``cells`` share, in the words of their titles: ``gptq vision 3``; empty if there are none.

    Full-precision cells, which join any group, are ignored unless there are no others.
    """
    cells = [cell for cell in cells if cell.parts] or cells
    shared = [
        " ".join(sorted(names))
        for names in ({cell.names[key] for cell in cells} for key in ("model", "task", "method"))
        if len(names) == 1
    ]
    for part in sorted({part for cell in cells for part in cell.parts}, key=part_order):
        labels = {bits_label(cell.parts[part]) if part in cell.parts else "16" for cell in cells}
        if len(labels) == 1:
            shared.append(f"{part} {labels.pop()}")
    return " ".join(shared)
