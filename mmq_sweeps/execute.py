"""Running pending cells in this process: load each model once, check everything, prepare shared work, run cell by cell."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmq_sweeps import environment
from mmq_sweeps.background import Background
from mmq_sweeps.build import build
from mmq_sweeps.cell import Cell, digest
from mmq_sweeps.checks import model_problems
from mmq_sweeps.errors import ConfigError, StoreError
from mmq_sweeps.locks import Lock
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.progress import Reporter
from mmq_sweeps.quantize import KIND, Request
from mmq_sweeps.record import Record, outcome
from mmq_sweeps.run import Bench, run_cell
from mmq_sweeps.share import share
from mmq_sweeps.store import Store, explained
from mmq_sweeps.sweep import Sweep
from mmq_sweeps.targets import Part, find_parts
from mmq_sweeps.tasks.base import Task
from mmq_sweeps.trackers import Log, Tracker
from mmq_sweeps.turns import Turns
from mmq_sweeps.warm import Warm


def execute(
    pending: Sequence[Cell],
    sweep: Sweep,
    store: Store,
    progress: Reporter,
    keep: Callable[[Record], None],
    *,
    redo: Mapping[str, str] = MappingProxyType({}),
    stop: Callable[[], bool] = lambda: False,
    help: Sequence[Cell] = (),
) -> None:
    """Run ``pending`` and hand each record to ``keep``; a ``ConfigError`` comes before the first cell or not at all.

    A cell with a record is run if ``redo`` names that record by its SHA-256. One that another process runs is put off; when
    nothing else is left, neither of ``pending`` nor of the further cells to ``help`` with, it is waited for. ``stop``
    is asked between cells and between works that cells share.
    """
    with quiet_libraries():
        tracker: Tracker = build("tracker", sweep.settings["tracker"])
        workshop = Workshop(sweep, store)
        groups = _by_model_and_task(pending)
        if problems := [problem for cells in groups for problem in workshop.problems(cells)]:
            raise ConfigError(problems)
        logging_to = tracker.start(sweep.group, store.root / "wandb", progress.say)
        with Background(logging_to, progress.say) as log, suppress(Stopped):
            run = Run(workshop, Turns(store, redo), progress, tracker, log, keep, stop)
            put_off = [cell for cells in groups for cell in run.through(cells)]
            put_off += [cell for cells in _by_model_and_task(help) for cell in run.help_with(cells)]
            for cell in put_off:
                run.wait_for(cell)


class Stopped(Exception):
    """``stop()`` was true."""


@dataclass(frozen=True)
class Run:
    """One process's way through cells."""

    workshop: Workshop
    turns: Turns
    progress: Reporter
    tracker: Tracker
    log: Log
    keep: Callable[[Record], None]
    stop: Callable[[], bool]

    def through(self, cells: Sequence[Cell]) -> list[Cell]:
        """Run what is missing of ``cells``, which share a model and a task; returns those that another process is at."""
        missing = [cell for cell in cells if self.turns.missing(cell)]
        if not missing:
            return []
        self._check_stop()
        bench = self.workshop.bench(missing[0])
        needed = [request for cell in missing for request in bench.requests(cell)]
        with bench.store.needed((KIND, request.key) for request in needed):
            wanted = self.workshop.requests(bench, missing[0], self.turns.missing)
            share(needed, wanted, self.workshop.sweep.group, bench, self.progress, self._check_stop)
            outputs = [bench.outputs(cell) for cell in missing]
            put_off = []
            for place, cell in enumerate(missing):
                # Those of cells that are done may be evicted.
                with bench.store.needed(chain.from_iterable(outputs[place:])):
                    if not self._run(cell, bench, self.turns.take):
                        put_off.append(cell)
            return put_off

    def help_with(self, cells: Sequence[Cell]) -> list[Cell]:
        """As ``through`` for cells that are another process's, which are left to it if they have problems."""
        missing = [cell for cell in cells if self.turns.missing(cell)]
        if missing and (problems := self.workshop.problems(missing)):
            for problem in problems:
                self.progress.say(f"warning: {missing[0].title()} is left alone: {problem}")
            return []
        return self.through(missing)

    def wait_for(self, cell: Cell) -> None:
        """See that ``cell``, which another process was at, ends."""
        bench = self.workshop.bench(cell)
        with bench.store.needed(bench.outputs(cell)):
            self._run(cell, bench, lambda one: self.turns.wait(one, self.stop))
        self._check_stop()

    def _run(self, cell: Cell, bench: Bench, take: Callable[[Cell], Lock | None]) -> bool:
        """Run ``cell``, unless that was done meanwhile; False where another process is at it."""
        self._check_stop()
        if not self.turns.missing(cell):
            return True
        lock = take(cell)
        if lock is None:
            return False
        with lock:
            # Another may have ended it just before it was locked.
            if self.turns.missing(cell):
                self.progress.begin(cell.title(), cell.id)
                record, items = run_cell(cell, bench, self.progress)
                self.progress.finish(cell.title(), outcome(record), cell.id)
                self.log(record, items, bench.task.samples(self.tracker.samples))
                self.keep(record)
        return True

    def _check_stop(self) -> None:
        if self.stop():
            raise Stopped


def _by_model_and_task(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Groups of cells that share a model and a task; groups of one model follow each other."""
    models: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        models.setdefault(digest(cell.model), {}).setdefault(digest(cell.task), []).append(cell)
    return [group for tasks in models.values() for group in tasks.values()]


class Workshop:
    """Builds what cells share. One model at a time is in memory: a sweep over several loads each as its turn comes."""

    def __init__(self, sweep: Sweep, store: Store) -> None:
        self.sweep, self._store = sweep, store
        self._tasks: dict[str, Task] = {}
        self._model: tuple[str, LoadedModel, dict[str, Part], Warm] | None = None
        self._uses = Counter(cell.output_key(part) for cell in sweep.cells for part in cell.model["parts"])

    def bench(self, cell: Cell) -> Bench:
        """What ``cell`` and all of its model and task share; a ``ConfigError`` where it cannot be built."""
        config = self.sweep.configs[cell.id]
        loaded, parts, warm = self._loaded(config["model"])
        key = digest(cell.task)
        if key not in self._tasks:
            self._tasks[key] = build("task", config["task"])
        retries = self.sweep.settings.get("retries", Bench.retries)
        return Bench(loaded, parts, self._tasks[key], config["calibration"]["batch_size"], self._store, warm, retries)

    def requests(self, bench: Bench, cell: Cell, missing: Callable[[Cell], bool]) -> list[Request]:
        """What is needed by all cells of the sweep that share the model and the task of ``cell`` and have yet to run."""
        same = (digest(cell.model), digest(cell.task))
        wanted: dict[str, Request] = {}
        for other in self.sweep.cells:
            if (digest(other.model), digest(other.task)) == same and missing(other):
                # What cannot be run is that cell's failure, not this one's.
                with suppress(ValueError):
                    wanted |= {request.key: request for request in bench.requests(other)}
        return list(wanted.values())

    def problems(self, cells: Sequence[Cell]) -> list[str]:
        """What keeps ``cells``, which share a model and a task, from running."""
        bench = self.bench(cells[0])
        # Cells that quantize a part alike have the same problems with it.
        distinct = {(part, cell.part_key(part)): cell for cell in cells for part in cell.parts}
        asked = {cell.id: cell for cell in distinct.values()}
        found = [problem for cell in asked.values() for problem in _cell_problems(cell, bench)]
        calibrations = {digest(cell.calibration): cell.calibration for cell in cells if cell.calibration}
        try:
            with explained(bench.references):
                _check_task(bench, list(calibrations.values()))
        except StoreError:
            raise
        except (ValueError, RuntimeError) as error:
            found.append(str(error))
        # A cell that cannot be made, or data that cannot be read, are the reason of whatever else would be found.
        return found or model_problems(bench, cells)

    def _loaded(self, config: dict[str, Any]) -> tuple[LoadedModel, dict[str, Part], Warm]:
        key = digest(config)
        if self._model is None or self._model[0] != key:
            self._model = None  # Frees the other model before this one is read.
            try:
                loaded = load_model(config)
                parts = find_parts(loaded.model, config["parts"])
                self._model = (key, loaded, parts, Warm.of(loaded, parts, self._store, self._uses))
            except ValueError as error:
                raise ConfigError(str(error)) from error
            except (MemoryError, RuntimeError, OSError) as error:
                if environment.ran_out_of_memory(error):
                    raise ConfigError(_too_large(config, error)) from error
                if not isinstance(error, OSError):
                    raise
                raise ConfigError(f"model.checkpoint={config['checkpoint']}: {' '.join(str(error).split())}") from error
        return self._model[1:]


def _too_large(config: dict[str, Any], error: BaseException) -> str:
    asked = environment.asked_bytes(error)
    needed = f"{environment.told_size(asked)} more memory than there is" if asked else "more memory than there is"
    return (
        f"model.checkpoint={config['checkpoint']}: loading it in {config['dtype']} asked for {needed}; choose a smaller "
        "model.dtype, model.device_map=auto, model.device_map=disk or another model.device"
    )


def _check_task(bench: Bench, calibrations: list[dict[str, Any]]) -> None:
    try:
        bench.task.check(calibrations, bench.references)
    except OSError as error:
        # A file that is named and lies elsewhere is the task's data; all else was writing to the store.
        if error.filename is None or Path(error.filename).absolute().is_relative_to(bench.store.root):
            raise
        raise ValueError(f"task.data: cannot read {error.filename}: {error.strerror}") from error


def _cell_problems(cell: Cell, bench: Bench) -> list[str]:
    if cell.method is None:
        return []
    method = build("method", cell.method)
    if method.needs_statistics and cell.calibration is None:
        return [f"method={cell.names['method']}: needs statistics, so its yaml must say calibration: ${{calibration}}"]
    try:
        requests = bench.requests(cell)
    except ValueError as error:
        return [str(error)]
    return [problem for request in requests for problem in request.problems()]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' warnings and bars out of the way of the sweep's own."""
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
