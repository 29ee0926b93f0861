"""Take a sweep from its configurations to its table: plan and check it, record it in the store, run its missing cells."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from launch import sweep_file
from launch.monitor.findings import best_so_far, budget_of
from launch.monitor.frontier import results
from launch.planning.estimate import estimate
from launch.planning.plan import Plan, make_plan
from launch.planning.plan_table import show_plan
from launch.planning.preflight import check
from mmq_sweeps.config.sweep import Sweep, plan
from mmq_sweeps.errors import ConfigError, StoreError, unknown
from mmq_sweeps.reporting.compare import distinct_titles
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.progress import to_stderr
from mmq_sweeps.reporting.table import line, output_console, rows, show
from mmq_sweeps.reporting.trackers import address
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

# Module that runs the cells, by the class name in the launcher's yaml.
DISPATCHERS = {"LocalLauncher": "launch.dispatch.local", "SlurmLauncher": "launch.dispatch.slurm"}
# Lines shown of a failed cell's message; the record holds all.
ERROR_LINES = 3
HERE = {"_target_": "hydra_plugins.launch.local.LocalLauncher"}


def run_sweep(configs: Iterable[DictConfig], command: str = "", launcher: Mapping[str, Any] | None = None) -> int:
    """Run the cells missing from the store, print the table, and return the exit status: 1 if a cell failed, else 0."""
    check_settings(launcher or HERE)
    return start(plan(configs), launcher or HERE, command)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a sweep: its records so far, by cell, and the number of cells that did not run.

    ``left`` says that the cells were left to run elsewhere; ``stopped`` is the error of a store that could not be written.
    """

    sweep: Sweep
    store: Store
    records: Mapping[str, Record]
    missing: int = 0
    left: bool = False
    stopped: StoreError | None = None

    @property
    def failed(self) -> list[Record]:
        """The records of failed cells."""
        return [record for record in self.records.values() if not record.done]


def start(sweep: Sweep, launcher: Mapping[str, Any], command: str = "", asked: int | None = None) -> int:
    """Run the cells of ``sweep`` missing from the store, print the table and return the exit status.

    ``launcher`` holds the plain values of ``hydra.launcher``; ``asked`` is the number of configurations before merging
    equal cells. The status is 1 if cells failed or are missing; it is 0 also if the cells were left to run elsewhere.
    With ``dry_run``, only the plan is shown: nothing is run or written. Call ``check_settings`` first, and before
    composing cells.
    """
    if launcher.get("dry_run"):
        return _show_plan(sweep, launcher, asked)
    outcome = measure(sweep, launcher, command, asked)
    if outcome.left:
        return 0
    show_records(outcome.records.values(), outcome.store, sweep)
    if outcome.stopped is not None:
        to_stderr(
            f"stopped: {outcome.stopped.strerror or outcome.stopped}; "
            f"{counted(outcome.missing, 'cell is', 'cells are')} missing"
        )
    elif outcome.missing:
        to_stderr(f"{counted(outcome.missing, 'cell is', 'cells are')} missing; run the same command again to go on")
    return 1 if outcome.stopped is not None or outcome.missing or outcome.failed else 0


def measure(sweep: Sweep, launcher: Mapping[str, Any], command: str = "", asked: int | None = None) -> Outcome:
    """Run the cells of ``sweep`` missing from the store, as ``start`` does, and print no table."""
    module = _module(launcher)
    store = Store.of(sweep.settings["store"])
    records = {cell.id: store.record(cell.id) for cell in sweep.cells}
    made = make_plan(sweep, records.get, store.record_sha, launcher, asked)
    if made.pending and launcher.get("check", True) and not _in_process(launcher):
        _check(made)
    for warning in store.namesakes((cell.names["model"], cell.model) for cell in sweep.cells):
        to_stderr(f"warning: {warning}")
    sweep_id = sweep_file.write(store, made, command, launcher)
    missing, stopped, left = 0, None, False
    if made.pending:
        try:
            left = not module.dispatch(made, store, sweep_id, launcher)
        except StoreError as error:
            stopped = error
        except ConfigError as error:
            sweep_file.refuse(store, sweep_id, error.problems)
            raise
        missing = _read_again(made, store, records)
    found = {cell_id: record for cell_id, record in records.items() if record is not None}
    return Outcome(sweep, store, found, missing, left, stopped)


def check_settings(launcher: Mapping[str, Any]) -> None:
    """Raise a ``ConfigError`` listing invalid launcher settings; call it before any work."""
    for key in ("dry_run", "check"):
        if not isinstance(launcher.get(key, False), bool):
            raise ConfigError(f"hydra.launcher.{key}={launcher[key]}: choose true or false.")
    _module(launcher).check(launcher)


def _show_plan(sweep: Sweep, launcher: Mapping[str, Any], asked: int | None) -> int:
    root = Path(sweep.settings["store"]["dir"]).absolute()
    store = Store.reading(root) if (root / "cells").is_dir() else None
    records = {cell.id: store.summary(cell.id) for cell in sweep.cells} if store else {}
    made = make_plan(sweep, records.get, store.record_sha if store else lambda cell_id: None, launcher, asked)
    if made.pending and launcher.get("check", True):
        _check(made)
    show_plan(made, estimate(made.pending, store) if store else None, root)
    return 0


def _in_process(launcher: Mapping[str, Any]) -> bool:
    """Return True if cells run in this process, which checks them on the loaded models before the first cell."""
    return _module(launcher) is importlib.import_module("launch.dispatch.local") and (launcher.get("workers") or 1) == 1


def _check(made: Plan) -> None:
    for sentence in check(replace(made.sweep, cells=made.pending)):
        to_stderr(f"warning: not checked: {sentence}")


def _read_again(made: Plan, store: Store, records: dict[str, Record | None]) -> int:
    """Refresh ``records`` and return the number of pending cells that did not run."""
    missing = 0
    for cell in made.pending:
        records[cell.id] = store.record(cell.id)
        missing += records[cell.id] is None or store.record_sha(cell.id) == made.redo.get(cell.id)
    return missing


def show_records(records: Iterable[Record], store: Store, sweep: Sweep) -> None:
    """Print the table of ``records`` to standard output and the failed cells to standard error."""
    records, titles = list(records), distinct_titles(sweep.cells)
    table_rows, found = rows(records, store.items), results((titles[one.id], one) for one in records)
    failed = [row for row in table_rows if row["status"] != "done"]
    page = address(store.root / "wandb", sweep.settings["tracker"])
    if sweep.settings["output"] == "json":
        told = {
            "store": str(store.root),
            "sweep": sweep.id,
            "cells": table_rows,
            "failed": len(failed),
            "results": [one.as_json(budget_of(sweep.settings)) for one in found],
            "wandb": page,
        }
        output_console().out(json.dumps(told, indent=1), highlight=False)
    else:
        console = output_console()
        if len(failed) < len(table_rows):
            show(table_rows, console)
        if (budget := budget_of(sweep.settings)) is not None:
            for text in best_so_far(found, budget, ended=len(records) == len(sweep.cells)):
                line(console, text)
        line(console, f"store: {store.root}")
        if page:
            line(console, f"W&B: {page} (group {sweep.id})")
    _tell_failed(failed, len(table_rows), store)


def show_failed(outcome: Outcome) -> None:
    """Print the failed cells of a sweep to standard error."""
    table_rows = rows(outcome.records.values(), outcome.store.items)
    _tell_failed([row for row in table_rows if row["status"] != "done"], len(table_rows), outcome.store)


def _tell_failed(failed: Sequence[Mapping[str, Any]], count: int, store: Store) -> None:
    errors = Console(stderr=True, markup=False, emoji=False, highlight=False)
    for row in failed:
        title = " ".join([row["label"], *(f"{part} {bits}" for part, bits in row["bits"].items())])
        message = f"failed: {title}: {row['error']['class']}: {_shortened(row['error']['message'])}"
        where = store.record_path(row["id"])
        errors.print(f"{message} (traceback in {where})", soft_wrap=True)
    if failed:
        errors.print(f"{len(failed)} of {counted(count, 'cell')} failed")


def _shortened(message: str) -> str:
    """Return the first lines of ``message``, which may have a line for each layer of the model."""
    lines = message.splitlines()
    more = f"\nand {len(lines) - ERROR_LINES} more lines" if len(lines) > ERROR_LINES else ""
    return "\n".join(lines[:ERROR_LINES]) + more


def _module(launcher: Mapping[str, Any]) -> Any:
    """Return the module that runs a plan's cells; it has ``check(launcher)`` and ``dispatch(...)``."""
    name = str(launcher["_target_"]).rpartition(".")[2]
    if name not in DISPATCHERS:
        raise ConfigError(f"hydra.launcher._target_: {unknown('launcher', name, DISPATCHERS)}")
    return importlib.import_module(DISPATCHERS[name])
