"""Running pending cells in this process: load each model once, check everything, prepare shared work, run cell by cell."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mmq_sweeps.build import build
from mmq_sweeps.cell import Cell, digest
from mmq_sweeps.errors import ConfigError, StoreError
from mmq_sweeps.models.loading import load_model
from mmq_sweeps.progress import Progress
from mmq_sweeps.quantize import KIND
from mmq_sweeps.record import Record
from mmq_sweeps.run import Bench, outcome, run_cell
from mmq_sweeps.store import Store, explained
from mmq_sweeps.sweep import Sweep
from mmq_sweeps.targets import check_format, find_parts
from mmq_sweeps.trackers import Log, Tracker


def execute(
    pending: Sequence[Cell], sweep: Sweep, store: Store, progress: Progress, keep: Callable[[Record], None]
) -> None:
    """Run ``pending`` and hand each record to ``keep``; a ``ConfigError`` comes before the first cell or not at all."""
    with quiet_libraries():
        tracker: Tracker = build("tracker", sweep.settings["tracker"])
        groups = _by_model_and_task(pending)
        benches = {key: _bench(cells, sweep, store) for key, cells in groups.items()}
        log = tracker.start(sweep.group, store.root / "wandb", progress.say)
        for key, cells in groups.items():
            _prepare(cells, benches[key], progress)
            for cell in cells:
                keep(_run_and_log(cell, benches[key], progress, tracker, log))


def _by_model_and_task(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(digest([cell.model, cell.task]), []).append(cell)
    return groups


def _bench(cells: Sequence[Cell], sweep: Sweep, store: Store) -> Bench:
    """Load what ``cells`` share and check all of them on it."""
    config = sweep.configs[cells[0].id]
    try:
        loaded = load_model(config["model"])
        parts = find_parts(loaded.model, config["model"]["parts"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"model.checkpoint={config['model']['checkpoint']}: {told}") from error
    task = build("task", config["task"])
    bench = Bench(loaded, parts, task, config["calibration"]["batch_size"], store)
    problems = [problem for cell in cells for problem in _cell_problems(cell, bench)]
    calibrations = {digest(cell.calibration): cell.calibration for cell in cells if cell.calibration}
    try:
        with explained(bench.references):
            task.check(list(calibrations.values()), bench.references)
    except StoreError:
        raise
    except (ValueError, RuntimeError) as error:
        problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    return bench


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
    return [problem for request in requests for problem in check_format([request.unit], request.format)]


def _prepare(cells: Sequence[Cell], bench: Bench, progress: Progress) -> None:
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


def _run_and_log(cell: Cell, bench: Bench, progress: Progress, tracker: Tracker, log: Log) -> Record:
    progress.begin(cell.title())
    record, items = run_cell(cell, bench, progress)
    progress.finish(cell.title(), outcome(record))
    log(record, items, bench.task.samples(tracker.samples))
    return record


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' warnings and bars out of the way of the sweep's own."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
