"""Running pending cells in this process: load each model once, check everything, prepare shared work, run cell by cell."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmq_sweeps import environment
from mmq_sweeps.build import build
from mmq_sweeps.cell import Cell, digest
from mmq_sweeps.errors import ConfigError, StoreError
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.progress import Reporter
from mmq_sweeps.quantize import KIND
from mmq_sweeps.record import Record, outcome
from mmq_sweeps.run import Bench, run_cell
from mmq_sweeps.store import Store, explained
from mmq_sweeps.sweep import Sweep
from mmq_sweeps.targets import Part, find_parts
from mmq_sweeps.tasks.base import Task
from mmq_sweeps.trackers import Log, Tracker
from mmq_sweeps.turns import Turns


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
    is asked between cells.
    """
    with quiet_libraries():
        tracker: Tracker = build("tracker", sweep.settings["tracker"])
        workshop = Workshop(sweep, store)
        groups = _by_model_and_task(pending)
        if problems := [problem for cells in groups for problem in workshop.problems(cells)]:
            raise ConfigError(problems)
        log = tracker.start(sweep.group, store.root / "wandb", progress.say)
        turns = Turns(store, redo)
        put_off: list[Cell] = []
        for cells in [*groups, *_by_model_and_task(help)]:
            left = [cell for cell in cells if turns.missing(cell)]
            if not left or stop():
                continue
            bench = workshop.bench(left[0])
            if cells in groups:
                # What the cells to help with share is prepared by whoever they belong to.
                _prepare(left, bench, progress)
            for cell in left:
                if stop() or not turns.missing(cell):
                    continue
                lock = turns.take(cell)
                if lock is None:
                    put_off.append(cell)
                    continue
                with lock:
                    # Another may have ended it just before it was locked.
                    if turns.missing(cell):
                        keep(_run_and_log(cell, bench, progress, tracker, log))
        for cell in put_off:
            if (lock := turns.wait(cell, stop)) is not None:
                with lock:
                    keep(_run_and_log(cell, workshop.bench(cell), progress, tracker, log))


def _by_model_and_task(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Groups of cells that share a model and a task; groups of one model follow each other."""
    models: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        models.setdefault(digest(cell.model), {}).setdefault(digest(cell.task), []).append(cell)
    return [group for tasks in models.values() for group in tasks.values()]


class Workshop:
    """Builds what cells share. One model at a time is in memory: a sweep over several loads each as its turn comes."""

    def __init__(self, sweep: Sweep, store: Store) -> None:
        self._sweep, self._store = sweep, store
        self._tasks: dict[str, Task] = {}
        self._model: tuple[str, LoadedModel, dict[str, Part]] | None = None

    def bench(self, cell: Cell) -> Bench:
        """What ``cell`` and all of its model and task share; a ``ConfigError`` where it cannot be built."""
        config = self._sweep.configs[cell.id]
        loaded, parts = self._loaded(config["model"])
        key = digest(cell.task)
        if key not in self._tasks:
            self._tasks[key] = build("task", config["task"])
        return Bench(loaded, parts, self._tasks[key], config["calibration"]["batch_size"], self._store)

    def problems(self, cells: Sequence[Cell]) -> list[str]:
        """What keeps ``cells``, which share a model and a task, from running."""
        bench = self.bench(cells[0])
        found = [problem for cell in cells for problem in _cell_problems(cell, bench)]
        calibrations = {digest(cell.calibration): cell.calibration for cell in cells if cell.calibration}
        try:
            with explained(bench.references):
                _check_task(bench, list(calibrations.values()))
        except StoreError:
            raise
        except (ValueError, RuntimeError) as error:
            found.append(str(error))
        return found

    def _loaded(self, config: dict[str, Any]) -> tuple[LoadedModel, dict[str, Part]]:
        key = digest(config)
        if self._model is None or self._model[0] != key:
            self._model = None  # Frees the other model before this one is read.
            try:
                loaded = load_model(config)
                self._model = (key, loaded, find_parts(loaded.model, config["parts"]))
            except ValueError as error:
                raise ConfigError(str(error)) from error
            except (MemoryError, RuntimeError, OSError) as error:
                if environment.ran_out_of_memory(error):
                    raise ConfigError(_too_large(config, error)) from error
                if not isinstance(error, OSError):
                    raise
                raise ConfigError(f"model.checkpoint={config['checkpoint']}: {' '.join(str(error).split())}") from error
        return self._model[1], self._model[2]


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


def _prepare(cells: Sequence[Cell], bench: Bench, progress: Reporter) -> None:
    """Quantize for all ``cells`` what the store lacks, in one pass; a unit that fails here fails its own cell later."""
    missing = [
        request for cell in cells for request in bench.requests(cell) if not bench.store.has_artifact(KIND, request.key)
    ]
    if not missing:
        return
    progress.begin("shared quantization")
    try:
        bench.compute(missing, progress)
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - each cell tries again on its own and records its own failure
        progress.say(f"warning: shared quantization stopped ({type(error).__name__}: {error}); each cell tries alone")


def _run_and_log(cell: Cell, bench: Bench, progress: Reporter, tracker: Tracker, log: Log) -> Record:
    progress.begin(cell.title(), cell.id)
    record, items = run_cell(cell, bench, progress)
    progress.finish(cell.title(), outcome(record), cell.id)
    log(record, items, bench.task.samples(tracker.samples))
    return record


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
