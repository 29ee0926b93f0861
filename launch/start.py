"""From a sweep to its table: plan it, check it, note it in the store, run what is missing where the launcher says."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from launch import sweep_file
from launch.planning.estimate import estimate
from launch.planning.plan import Plan, make_plan
from launch.planning.plan_table import show_plan
from launch.planning.preflight import check
from mmq_sweeps.config.sweep import Sweep, plan
from mmq_sweeps.errors import ConfigError, StoreError, unknown
from mmq_sweeps.reporting.table import output_console, rows, show
from mmq_sweeps.reporting.trackers import address
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

# By the class that the launcher's yaml names: the module that runs a plan's cells.
DISPATCHERS = {"LocalLauncher": "launch.dispatch.local", "SlurmLauncher": "launch.dispatch.slurm"}
# Of the message of a failed cell: the record has all.
ERROR_LINES = 3
HERE = {"_target_": "hydra_plugins.launch.local.LocalLauncher"}


def run_sweep(configs: Iterable[DictConfig], command: str = "", launcher: Mapping[str, Any] | None = None) -> int:
    """Run what the store does not have, print the table, and return the exit status: 1 where a cell failed, else 0."""
    check_settings(launcher or HERE)
    return start(plan(configs), launcher or HERE, command)


def start(sweep: Sweep, launcher: Mapping[str, Any], command: str = "", asked: int | None = None) -> int:
    """Run what the store lacks of ``sweep`` by ``launcher``, the plain values of ``hydra.launcher``; the exit status.

    It is 0 as well where cells were left to run elsewhere. With ``dry_run`` the plan is shown, and nothing run or written.
    ``check_settings`` comes before it, and where cells are composed, before that.
    """
    module = _module(launcher)
    if launcher.get("dry_run"):
        return _show_plan(sweep, launcher, asked)
    store = Store.of(sweep.settings["store"], say=lambda text: tell(f"warning: {text}"))
    records = {cell.id: store.record(cell.id) for cell in sweep.cells}
    made = make_plan(sweep, records.get, store.record_sha, launcher, asked)
    if made.pending and launcher.get("check", True) and not _in_process(launcher):
        _check(made)
    for warning in store.namesakes((cell.names["model"], cell.model) for cell in sweep.cells):
        tell(f"warning: {warning}")
    sweep_id = sweep_file.write(store, made, command, launcher)
    missing, stopped = 0, None
    if made.pending:
        try:
            if not module.dispatch(made, store, sweep_id, launcher):
                return 0
        except StoreError as error:
            stopped = error
        missing = _read_again(made, store, records)
    found = [record for record in records.values() if record is not None]
    show_records(found, store, sweep)
    if stopped is not None:
        tell(f"stopped: {stopped.strerror or stopped}; {missing} cells are missing")
    elif missing:
        tell(f"{missing} cells are missing; run the same command again to go on")
    return 1 if stopped is not None or missing or any(not record.done for record in found) else 0


def check_settings(launcher: Mapping[str, Any]) -> None:
    """A ``ConfigError`` with what is wrong with the launcher's settings, before any work."""
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
    """Whether cells run in this process, which checks them with the models that it loads, before the first one."""
    return _module(launcher) is importlib.import_module("launch.dispatch.local") and (launcher.get("workers") or 1) == 1


def _check(made: Plan) -> None:
    for sentence in check(replace(made.sweep, cells=made.pending)):
        tell(f"warning: not checked: {sentence}")


def _read_again(made: Plan, store: Store, records: dict[str, Record | None]) -> int:
    """Bring ``records`` up to date, and count the pending cells that were not run."""
    missing = 0
    for cell in made.pending:
        records[cell.id] = store.record(cell.id)
        missing += records[cell.id] is None or store.record_sha(cell.id) == made.redo.get(cell.id)
    return missing


def tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def show_records(records: Iterable[Record], store: Store, sweep: Sweep) -> None:
    """The table of ``records`` on standard output, and what failed of them on standard error."""
    table_rows = rows(records, store.items)
    failed = [row for row in table_rows if row["status"] != "done"]
    page = address(store.root / "wandb", sweep.settings["tracker"])
    if sweep.settings["output"] == "json":
        told = {
            "store": str(store.root),
            "sweep": sweep.id,
            "cells": table_rows,
            "failed": len(failed),
            "wandb": page,
        }
        output_console().out(json.dumps(told, indent=1), highlight=False)
    else:
        console = output_console()
        if len(failed) < len(table_rows):
            show(table_rows, console)
        console.print(f"store: {store.root}", soft_wrap=True, highlight=False, markup=False, emoji=False)
        if page:
            console.print(f"W&B: {page} (group {sweep.id})", soft_wrap=True, highlight=False, markup=False, emoji=False)
    errors = Console(stderr=True, markup=False, emoji=False, highlight=False)
    for row in failed:
        title = " ".join([row["method"], *(f"{part} {bits}" for part, bits in row["bits"].items())])
        message = f"failed: {title}: {row['error']['class']}: {_shortened(row['error']['message'])}"
        where = store.record_path(row["id"])
        errors.print(f"{message} (traceback in {where})", soft_wrap=True)
    if failed:
        errors.print(f"{len(failed)} of {len(table_rows)} cells failed")


def _shortened(message: str) -> str:
    """The first lines of a message, which may have as many as a model has layers."""
    lines = message.splitlines()
    more = f"\nand {len(lines) - ERROR_LINES} more lines" if len(lines) > ERROR_LINES else ""
    return "\n".join(lines[:ERROR_LINES]) + more


def _module(launcher: Mapping[str, Any]) -> Any:
    """The module that runs a plan's cells: ``check`` for its settings, and ``dispatch``."""
    name = str(launcher["_target_"]).rpartition(".")[2]
    if name not in DISPATCHERS:
        raise ConfigError(f"hydra.launcher._target_: {unknown('launcher', name, DISPATCHERS)}")
    return importlib.import_module(DISPATCHERS[name])
