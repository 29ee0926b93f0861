"""Running pending cells in this process: load each model once, check everything, prepare shared work, run cell by cell."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import Sweep, changed_files
from mmq_sweeps.errors import ConfigError, StoreError
from mmq_sweeps.execution import environment
from mmq_sweeps.execution.model_checks import model_problems
from mmq_sweeps.execution.prequantize import share
from mmq_sweeps.execution.run_cell import Bench, failed_record, run_cell
from mmq_sweeps.execution.session import Warm
from mmq_sweeps.identity.cell import Cell, digest
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.quantization.quantize import KIND, Request, problems
from mmq_sweeps.quantization.targets import Part, find_parts
from mmq_sweeps.reporting.background import Background
from mmq_sweeps.reporting.progress import Reporter
from mmq_sweeps.reporting.trackers import Log, Tracker
from mmq_sweeps.store.atomic_files import share as share_path
from mmq_sweeps.store.attempts import CrashCounter
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.locks import Lock
from mmq_sweeps.store.record import Record, outcome
from mmq_sweeps.store.store import Store, explained
from mmq_sweeps.tasks.base import Task


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
    fail_alone: bool = False,
) -> None:
    """Run ``pending`` and hand each record to ``keep``; a ``ConfigError`` comes before the first cell or not at all.

    With ``fail_alone`` a cell that cannot run is recorded as failed with the reason, and the others run: for processes
    that run a share of a sweep, whose cells were checked before it was dealt out, or on request were not.

    A cell with a record is run if ``redo`` names that record by its SHA-256. One that another process runs is put off; when
    nothing else is left, neither of ``pending`` nor of the further cells to ``help`` with, it is waited for. ``stop``
    is asked between cells and between works that cells share.
    """
    with quiet_libraries():
        tracker: Tracker = build("tracker", sweep.settings["tracker"])
        workshop = Workshop(sweep, store)
        groups = _by_model_and_task(pending)
        if not fail_alone and (problems := [problem for cells in groups for problem in workshop.problems(cells)]):
            raise ConfigError(problems)
        logging_to = tracker.start(sweep.id, store.root / "wandb", progress.say)
        if (store.root / "wandb").is_dir():
            # The client makes it as the umask says, which would keep others of a shared store from having runs in it.
            store.files.make_folder(store.root / "wandb" / "wandb")
            share_path(store.root / "wandb", store.root)
        with Background(logging_to, progress.say) as log, suppress(Stopped):
            run = Run(workshop, Claims(store, redo), progress, tracker, log, keep, stop, fail_alone)
            put_off = [cell for cells in groups for cell in run.through(cells)]
            put_off += [cell for cells in _by_model_and_task(help) for cell in run.help_with(cells)]
            for cell in put_off:
                run.wait_for(cell)


class Stopped(Exception):
    """``stop()`` was true."""


class WorkerDied(Exception):
    """Processes that did the same were killed, again and again."""


@dataclass(frozen=True)
class Run:
    """One process's way through cells."""

    workshop: Workshop
    turns: Claims
    progress: Reporter
    tracker: Tracker
    log: Log
    keep: Callable[[Record], None]
    stop: Callable[[], bool]
    fail_alone: bool = False

    def through(self, cells: Sequence[Cell]) -> list[Cell]:
        """Run what is missing of ``cells``, which share a model and a task; returns those that another process is at."""
        missing = [cell for cell in cells if self.turns.missing(cell)]
        if missing:
            self._check_stop()
        if missing and self.fail_alone:
            missing = self._without_unfit(missing)
        if not missing:
            return []
        bench = self.workshop.bench(missing[0])
        needed = [request for cell in missing for request in bench.requests(cell)]
        with bench.store.needed((KIND, request.key) for request in needed):
            wanted = self.workshop.requests(bench, missing[0], self.turns.missing)
            share(needed, wanted, self.workshop.sweep.id, bench, self.progress, self._check_stop)
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

    def _without_unfit(self, cells: Sequence[Cell]) -> list[Cell]:
        """``cells`` without those that cannot run, which are recorded as failed."""
        unfit = self.workshop.unfit(cells)
        for cell in cells:
            # Another process that has the lock records the same.
            if cell.id not in unfit or (lock := self.turns.wait(cell, self.stop)) is None:
                continue
            with lock:
                self.progress.begin(cell.title(), cell.id)
                record = self.workshop.store.save(failed_record(cell, unfit[cell.id]))
                self.progress.finish(cell.title(), outcome(record), cell.id)
                self.log(record, [], [])
                self.keep(record)
        return [cell for cell in cells if cell.id not in unfit]

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
        self.sweep, self.store = sweep, store
        self._tasks: dict[str, Task] = {}
        # Of which calibration and task it is known that the samples can be had: that reads images.
        self._checked: set[tuple[str, str]] = set()
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
        return Bench(loaded, parts, self._tasks[key], config["calibration"]["batch_size"], self.store, warm, retries)

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
        if changed := changed_files(self.sweep, cells):
            return changed
        return self._problems(cells, self.bench(cells[0]))

    def unfit(self, cells: Sequence[Cell]) -> dict[str, Exception]:
        """Why each of ``cells``, which share a model and a task, cannot run, by id; empty if all can.

        Loads the model. If processes were killed while they did, more often than a cell is retried, no cell can run.
        """
        if changed := changed_files(self.sweep, cells):
            return dict.fromkeys((cell.id for cell in cells), ConfigError(changed))
        retries = self.sweep.settings.get("retries", Bench.retries)
        loading = CrashCounter.of_work(self.store, f"{self.sweep.id}-load-{cells[0].id}")
        if (killed := len(loading.unended())) > retries:
            loading.forget()
            return dict.fromkeys((cell.id for cell in cells), WorkerDied(_killed_loading(cells[0], killed)))
        try:
            with loading.begun():
                bench = self.bench(cells[0])
                if self._reason(cells, bench) is None:
                    return {}
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is these cells' failure and no other's
            return dict.fromkeys((cell.id for cell in cells), error)
        # Of the model and the task, then of each cell.
        bare = replace(cells[0], parts={}, method=None, calibration=None)
        if (reason := self._reason([bare], bench)) is not None:
            return dict.fromkeys((cell.id for cell in cells), reason)
        return {cell.id: reason for cell in cells if (reason := self._reason([cell], bench)) is not None}

    def _reason(self, cells: Sequence[Cell], bench: Bench) -> Exception | None:
        try:
            problems = self._problems(cells, bench)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            return error
        return ConfigError(problems) if problems else None

    def _problems(self, cells: Sequence[Cell], bench: Bench) -> list[str]:
        # Cells that quantize a part alike have the same problems with it.
        distinct = {(part, cell.part_key(part)): cell for cell in cells for part in cell.parts}
        asked = {cell.id: cell for cell in distinct.values()}
        found = [problem for cell in asked.values() for problem in _cell_problems(cell, bench)]
        task = digest(cells[0].task)
        calibrations = {digest(cell.calibration): cell.calibration for cell in cells if cell.calibration}
        # With no calibration it is checked whether the data can be read, which the others need as well.
        unchecked = {("", task), *((key, task) for key in calibrations)} - self._checked
        try:
            if unchecked:
                with explained(bench.references):
                    _check_task(bench, [calibrations[key] for key, _ in unchecked if key])
                self._checked |= unchecked
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
                self._model = (key, loaded, parts, Warm.of(loaded, parts, self.store, self._uses))
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


def _killed_loading(cell: Cell, times: int) -> str:
    return (
        f"model={cell.names['model']}: the process that loaded it was killed {times} times, as by a lack of memory; choose a "
        "smaller model.dtype, model.device_map=disk or a machine with more memory (on SLURM hydra.launcher.mem)"
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
    method = build("method", cell.method_node)
    if method.needs_statistics and cell.calibration is None:
        return [f"method={cell.names['method']}: needs statistics, so its yaml must say calibration: ${{calibration}}"]
    try:
        requests = bench.requests(cell)
    except ValueError as error:
        return [str(error)]
    return problems(requests)


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
