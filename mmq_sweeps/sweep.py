"""A sweep: the cells of many configurations, checked before work starts, each run once, shown as one table.

A single configuration is a sweep of one. The full-precision cell of every model and task comes first, asked for or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mmq_sweeps.annotations import annotations_of
from mmq_sweeps.cell import Annotations, Cell, digest
from mmq_sweeps.errors import ConfigError, StoreError
from mmq_sweeps.models.checkpoint import pinned_revision
from mmq_sweeps.progress import Progress
from mmq_sweeps.record import Record
from mmq_sweeps.schema import problems, unasked, without_value
from mmq_sweeps.store import Store
from mmq_sweeps.table import output_console, rows, show

# Belong to the sweep as a whole; sweeping over them has no meaning.
OF_THE_SWEEP = ("store", "retry", "output", "tracker")


@dataclass(frozen=True)
class Sweep:
    """Distinct cells in the order they run, full precision first, and the settings of the whole."""

    cells: tuple[Cell, ...]
    configs: dict[str, dict[str, Any]]
    settings: dict[str, Any]

    @property
    def group(self) -> str:
        """The same cells are the same group, whenever they are run."""
        return digest(sorted(cell.id for cell in self.cells))[:12]

    def to_json(self) -> dict[str, Any]:
        """All that another process needs to run the cells, as plain values; what cells have in common is there once."""
        sections: dict[str, Any] = {}

        def kept(values: Mapping[str, Any]) -> dict[str, str]:
            keys = {name: digest(value)[:16] for name, value in values.items()}
            sections.update({key: values[name] for name, key in keys.items()})
            return keys

        cells = {cell.id: {"cell": kept(asdict(cell)), "config": kept(self.configs[cell.id])} for cell in self.cells}
        return {"settings": self.settings, "cells": cells, "sections": sections}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Sweep:
        """The sweep that ``to_json`` told of."""
        sections = content["sections"]

        def read(keys: Mapping[str, str]) -> dict[str, Any]:
            return {name: sections[key] for name, key in keys.items()}

        cells = [Cell(**read(entry["cell"])) for entry in content["cells"].values()]
        configs = {cell_id: read(entry["config"]) for cell_id, entry in content["cells"].items()}
        return Sweep(tuple(cells), configs, dict(content["settings"]))


def plan(configs: Sequence[DictConfig]) -> Sweep:
    """Check every configuration and compose the cells; a ``ConfigError`` tells all problems of all of them."""
    plain = [_resolved(config) for config in configs]
    found = [problem for config in plain for problem in problems(config)]
    settings = {key: plain[0][key] for key in OF_THE_SWEEP}
    for key in OF_THE_SWEEP:
        if any(config[key] != settings[key] for config in plain):
            found.append(f"{key}: differs between the cells of one sweep; give it one value, or run two sweeps.")
    if found:
        raise ConfigError(found)
    annotations = _annotations(plain)
    baselines: dict[str, Cell] = {}
    asked: dict[str, Cell] = {}
    by_id: dict[str, dict[str, Any]] = {}
    for config, files in zip(plain, annotations, strict=True):
        cell = Cell.of(config, files)
        for kind, one in ((baselines, cell.baseline()), (asked, cell)):
            kind.setdefault(one.id, one)
            by_id.setdefault(one.id, config)
    return Sweep(tuple((baselines | asked).values()), by_id, settings)


def _annotations(configs: Sequence[dict[str, Any]]) -> list[Annotations | None]:
    """The digests of each configuration's annotation files; a ``ConfigError`` tells all that are missing."""
    found, missing = [], []
    for config in configs:
        try:
            found.append(annotations_of(config))
        except ConfigError as error:
            missing += error.problems
    if missing:
        raise ConfigError(missing)
    return found


def run_sweep(configs: Sequence[DictConfig], command: str = "") -> int:
    """Run what the store does not have, print the table, and return the exit status: 1 where a cell failed, else 0."""
    sweep = plan(configs)
    with Progress(len(sweep.cells)) as progress:
        store = Store.open(sweep.settings["store"]["dir"], say=lambda text: progress.say(f"warning: {text}"))
        _note_sweep(store, sweep, command)
        records = {cell.id: store.record(cell.id) for cell in sweep.cells}
        pending = [cell for cell in sweep.cells if _pending(records[cell.id], sweep.settings["retry"])]
        progress.skip(len(sweep.cells) - len(pending))
        ran: set[str] = set()
        stopped = None
        if pending:
            # Imports torch, which a sweep that only shows its table does not need.
            from mmq_sweeps.execute import execute

            def keep(record: Record) -> None:
                records[record.id] = record
                ran.add(record.id)

            try:
                execute(pending, sweep, store, progress, keep)
            except StoreError as error:
                stopped = error
    finished = [record for record in records.values() if record is not None]
    _show(finished, store, sweep)
    if stopped is not None:
        progress.say(f"stopped: {stopped.strerror or stopped}; {len(pending) - len(ran)} cells are missing")
    return 1 if stopped is not None or any(not record.done for record in finished) else 0


def _resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, with the model's weights named by their revision."""
    if problem := unasked(config) or without_value(config):
        raise ConfigError(problem)
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    container = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    plain = {str(key): value for key, value in dict(container).items()}  # type: ignore[arg-type]
    plain["model"]["parts"] = {part: where for part, where in plain["model"]["parts"].items() if where["module"]}
    if isinstance(limits := plain["model"]["max_memory"], dict):
        # The number of a GPU is read as a number, which JSON has no keys of.
        plain["model"]["max_memory"] = {str(place): limit for place, limit in limits.items()}
    plain["model"]["revision"] = pinned_revision(plain["model"])
    return plain


def _pending(record: Record | None, retry: str) -> bool:
    return record is None or retry == "all" or (retry == "failed" and not record.done)


def _note_sweep(store: Store, sweep: Sweep, command: str) -> None:
    """Which cells belong together, for the analysis and for people."""
    store.note(f"sweeps/{sweep.group}.json", {"command": command, "cells": [cell.id for cell in sweep.cells]})


def _show(records: Iterable[Record], store: Store, sweep: Sweep) -> None:
    table_rows = rows(records, store.items)
    failed = [row for row in table_rows if row["status"] != "done"]
    if sweep.settings["output"] == "json":
        told = {"store": str(store.root), "sweep": sweep.group, "cells": table_rows, "failed": len(failed)}
        output_console().out(json.dumps(told, indent=1), highlight=False)
    else:
        console = output_console()
        if len(failed) < len(table_rows):
            show(table_rows, console)
        console.print(f"store: {store.root}", soft_wrap=True, highlight=False, markup=False)
    errors = Console(stderr=True)
    for row in failed:
        title = " ".join([row["method"], *(f"{part} {bits}" for part, bits in row["bits"].items())])
        message = f"failed: {title}: {row['error']['class']}: {row['error']['message']}"
        where = store.record_path(row["id"])
        errors.print(f"{message} (traceback in {where})", soft_wrap=True, highlight=False, markup=False)
    if failed:
        errors.print(f"{len(failed)} of {len(table_rows)} cells failed", highlight=False)
