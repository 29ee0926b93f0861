"""Run pending cells in this process: check them, quantize their shared units, then cell by cell."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import Sweep
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.execution.cell_checks import Checks
from mmq_sweeps.execution.failure_policy import failed_record, record_cell
from mmq_sweeps.execution.prequantize import Prequantizer
from mmq_sweeps.execution.session import Session, Sessions
from mmq_sweeps.grouping import grouped
from mmq_sweeps.identity.cell import Cell, digest
from mmq_sweeps.quantization.requests import Request
from mmq_sweeps.reporting.background import Background
from mmq_sweeps.reporting.compare import distinct_titles
from mmq_sweeps.reporting.progress import Reporter, warnings_to
from mmq_sweeps.reporting.trackers import Log, Tracker
from mmq_sweeps.store.atomic_files import share as share_path
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.locks import Lock
from mmq_sweeps.store.record import Record, outcome
from mmq_sweeps.store.store import Store

logger = logging.getLogger(__name__)


def execute(
    pending: Sequence[Cell],
    sweep: Sweep,
    claims: Claims,
    progress: Reporter,
    keep: Callable[[Record], None],
    *,
    stop: Callable[[], bool] = lambda: False,
    help: Sequence[Cell] = (),
    fail_alone: bool = False,
) -> None:
    """Run ``pending`` and hand each record to ``keep``; a ``ConfigError`` comes before the first cell or not at all.

    ``claims`` decides which cells have to run. Cells locked elsewhere are deferred until everything else is done, the
    further cells to ``help`` with included. ``stop`` is called between cells and between calibration passes.

    With ``fail_alone`` a cell that cannot run is recorded as failed and the others run: for processes that run a share of a
    sweep, whose cells were checked before it was dealt out or, on request, were not.
    """
    with quiet_libraries(), warnings_to(progress.say):
        tracker: Tracker = build("tracker", sweep.settings["tracker"])
        sessions, checks = _kept_or_new(sweep, claims.store)
        groups = _by_model_and_task(pending)
        if not fail_alone and (found := [problem for cells in groups for problem in checks.problems(cells)]):
            raise ConfigError(found)
        logging_to = tracker.start(sweep.id, claims.store.root / "wandb")
        _share_wandb(claims.store)
        with Background(logging_to) as log, suppress(Stopped):
            titles = distinct_titles(sweep.cells)
            executor = Executor(sessions, checks, claims, progress, titles, tracker, log, keep, stop, fail_alone)
            deferred = [cell for cells in groups for cell in executor.run_group(cells)]
            deferred += [cell for cells in _by_model_and_task(help) for cell in executor.help_with(cells)]
            for cell in deferred:
                executor.wait_for(cell)


# Kept by ``models_kept`` from one sweep to the next.
_kept: ContextVar[list[tuple[Sessions, Checks]] | None] = ContextVar("kept", default=None)


@contextmanager
def models_kept() -> Iterator[None]:
    """Keep the loaded model, and the results of its checks, from one ``execute`` in the context to the next.

    For sweeps that follow each other in a process, such as the batches of a search.
    """
    token = _kept.set([])
    try:
        yield
    finally:
        _kept.reset(token)


def keeps_models() -> bool:
    """Return True inside ``models_kept``."""
    return _kept.get() is not None


def _kept_or_new(sweep: Sweep, store: Store) -> tuple[Sessions, Checks]:
    kept = _kept.get()
    if kept:
        sessions, checks = kept[0]
        sessions.follow(sweep, store)
        return sessions, checks
    sessions = Sessions(sweep, store)
    made = sessions, Checks(sessions)
    if kept is not None:
        kept.append(made)
    return made


class Stopped(Exception):
    """``stop()`` was true."""


@dataclass(frozen=True)
class Executor:
    """Runs cells of a sweep in one process."""

    sessions: Sessions
    checks: Checks
    claims: Claims
    progress: Reporter
    titles: Mapping[str, str]
    tracker: Tracker
    log: Log
    keep: Callable[[Record], None]
    stop: Callable[[], bool]
    fail_alone: bool = False

    def run_group(self, cells: Sequence[Cell]) -> list[Cell]:
        """Run the missing ``cells``, which share a model and a task; return those that another process has locked."""
        missing = [cell for cell in cells if self.claims.missing(cell)]
        if missing:
            self._check_stop()
        if missing and self.fail_alone:
            missing = self._without_unfit(missing)
        if not missing:
            return []
        session, store = self.sessions.open(missing[0]), self.claims.store
        needed = [request for cell in missing for request in session.requests(cell)]
        with store.locks.pinned((ArtifactKind.QUANTIZED, request.key) for request in needed):
            prequantizer = Prequantizer(session, self.sessions.sweep.id, self.progress, self._check_stop)
            prequantizer.run(needed, self._wanted(session, missing[0]))
            outputs = [session.output_artifacts(cell) for cell in missing]
            deferred = []
            for place, cell in enumerate(missing):
                # Outputs of the cells that are done may be evicted.
                with store.locks.pinned(chain.from_iterable(outputs[place:])):
                    if not self._run(cell, session, self.claims.take):
                        deferred.append(cell)
            return deferred

    def help_with(self, cells: Sequence[Cell]) -> list[Cell]:
        """Run another process's cells as ``run_group`` does; leave them to it if they have problems."""
        missing = [cell for cell in cells if self.claims.missing(cell)]
        if missing and (found := self.checks.problems(missing)):
            for problem in found:
                logger.warning("%s is left alone: %s", self.titles[missing[0].id], problem)
            return []
        return self.run_group(missing)

    def wait_for(self, cell: Cell) -> None:
        """Wait until ``cell``, which another process has locked, has ended; run it if that process died."""
        session = self.sessions.open(cell)
        with self.claims.store.locks.pinned(session.output_artifacts(cell)):
            self._run(cell, session, lambda cell: self.claims.wait(cell, self.stop))
        self._check_stop()

    def _run(self, cell: Cell, session: Session, take: Callable[[Cell], Lock | None]) -> bool:
        """Run ``cell`` unless it has ended meanwhile; False if another process has locked it."""
        self._check_stop()
        if not self.claims.missing(cell):
            return True
        lock = take(cell)
        if lock is None:
            return False
        with lock:
            # Another process may have ended it just before it was locked.
            if self.claims.missing(cell):
                self.progress.begin(self.titles[cell.id], cell.id)
                record, items = record_cell(cell, session, self.progress)
                self.progress.finish(self.titles[cell.id], outcome(record), cell.id)
                self.log(record, items, session.task.samples(self.tracker.samples))
                self.keep(record)
        return True

    def _without_unfit(self, cells: Sequence[Cell]) -> list[Cell]:
        """Record the cells that cannot run as failed; return the others."""
        unfit = self.checks.unfit(cells)
        for cell in cells:
            # Another process that has the lock records the same.
            if cell.id not in unfit or (lock := self.claims.wait(cell, self.stop)) is None:
                continue
            with lock:
                self.progress.begin(self.titles[cell.id], cell.id)
                record = self.claims.store.save(failed_record(cell, unfit[cell.id]))
                self.progress.finish(self.titles[cell.id], outcome(record), cell.id)
                self.log(record, [], [])
                self.keep(record)
        return [cell for cell in cells if cell.id not in unfit]

    def _wanted(self, session: Session, cell: Cell) -> list[Request]:
        """List the units of all missing cells of the sweep that share the model and the task of ``cell``."""
        same = (digest(cell.model), digest(cell.task))
        wanted: dict[str, Request] = {}
        for other in self.sessions.sweep.cells:
            if (digest(other.model), digest(other.task)) == same and self.claims.missing(other):
                # A cell that cannot run fails on its own, not here.
                with suppress(ValueError):
                    wanted |= {request.key: request for request in session.requests(other)}
        return list(wanted.values())

    def _check_stop(self) -> None:
        if self.stop():
            raise Stopped


def _share_wandb(store: Store) -> None:
    """Open W&B's folders like the store: its client makes them as the umask says, which would lock out other users."""
    if (store.root / "wandb").is_dir():
        store.files.make_folder(store.root / "wandb" / "wandb")
        share_path(store.root / "wandb", store.root)


def _by_model_and_task(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Group cells that share a model and a task; groups of one model follow each other."""
    by_model = grouped(cells, lambda cell: digest(cell.model)).values()
    return [group for alike in by_model for group in grouped(alike, lambda cell: digest(cell.task)).values()]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the warnings and progress bars of transformers and accelerate."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    placing = logging.getLogger("accelerate.big_modeling")
    level = placing.level
    placing.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        placing.setLevel(level)
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
