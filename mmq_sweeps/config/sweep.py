"""A sweep: the distinct cells of many configurations, checked before work starts, in the order of ``ordering.py``.

The full-precision cell of every model and task comes first, requested or not. A single configuration is a sweep, too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmq_sweeps.config.assignment import Source, assign, calibration_of
from mmq_sweeps.config.data_files import DataFiles, data_files
from mmq_sweeps.config.effective import cell_of
from mmq_sweeps.config.ordering import in_order
from mmq_sweeps.config.problems import late_problems, problems, unasked, unresolved, without_value
from mmq_sweeps.config.vision_weight import weight_problems, without_effect
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.assignment import PART_ORDER
from mmq_sweeps.identity.cell import QUANTIZED, Cell, digest
from mmq_sweeps.identity.checkpoint import checkpoint_path, files_digest, pinned_revision, quantization_method
from mmq_sweeps.identity.declared import declared

logger = logging.getLogger(__name__)
# Settings of the sweep as a whole; they cannot be swept over.
OF_THE_SWEEP = ("store", "retry", "retries", "output", "view", "tracker")


@dataclass(frozen=True)
class Sweep:
    """Distinct cells in running order, their configurations by cell id, and the settings of the sweep."""

    cells: tuple[Cell, ...]
    configs: dict[str, dict[str, Any]]
    settings: dict[str, Any]

    @property
    def id(self) -> str:
        """Digest of the cell ids, twelve hexadecimal digits: the same cells always give the same id."""
        return digest(sorted(cell.id for cell in self.cells))[:12]

    def to_json(self) -> dict[str, Any]:
        """Serialize everything another process needs to run the cells; sections that cells share are stored once."""
        sections: dict[str, Any] = {}

        def kept(values: Mapping[str, Any]) -> dict[str, str]:
            keys = {name: digest(value)[:16] for name, value in values.items()}
            sections.update({key: values[name] for name, key in keys.items()})
            return keys

        cells = {cell.id: {"cell": kept(asdict(cell)), "config": kept(self.configs[cell.id])} for cell in self.cells}
        return {"settings": self.settings, "cells": cells, "sections": sections}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Sweep:
        """Restore a sweep from the output of ``to_json``."""
        sections = content["sections"]

        def read(keys: Mapping[str, str]) -> dict[str, Any]:
            return {name: sections[key] for name, key in keys.items()}

        cells = [Cell(**read(entry["cell"])) for entry in content["cells"].values()]
        configs = {cell_id: read(entry["config"]) for cell_id, entry in content["cells"].items()}
        return Sweep(tuple(cells), configs, dict(content["settings"]))


def plan(configs: Iterable[DictConfig | dict[str, Any]], source: Source | None = None) -> Sweep:
    """Check all configurations and compose their cells; raise a single ConfigError with the problems of all.

    A configuration that is ``resolved`` already may share its sections with others. ``source`` finds the methods and units
    that assignments name; without it, methods of this package and no units.
    """
    return plan_each(configs, source)[0]


def plan_each(configs: Iterable[DictConfig | dict[str, Any]], source: Source | None = None) -> tuple[Sweep, list[Cell]]:
    """Return the ``plan`` of ``configs``, and the cell of each of them in their order."""
    plain = _with_checkpoints([dict(config) if isinstance(config, dict) else resolved(config) for config in configs])
    source = source or Source()
    # A configuration that is wrong in itself is not assigned.
    found = [
        problem
        for config in plain
        for problem in problems(config) or assign(config, source) or late_problems(config) or weight_problems(config)
    ]
    settings = {key: plain[0][key] for key in OF_THE_SWEEP}
    for key in OF_THE_SWEEP:
        if any(config[key] != settings[key] for config in plain):
            found.append(f"{key}: differs between the cells of one sweep; give it one value, or run two sweeps.")
    if found:
        raise ConfigError(found)
    files = _data_files(plain)
    read = cache(declared)
    baselines: dict[str, Cell] = {}
    asked: dict[str, Cell] = {}
    by_id: dict[str, dict[str, Any]] = {}
    each: list[Cell] = []
    remarks: dict[str, None] = {}
    for config, own in zip(plain, files, strict=True):
        try:
            cell = cell_of(config, own, read)
        except ConfigError as error:
            found += error.problems
            continue
        if (told := without_effect(config, cell.parts)) is not None:
            remarks[told] = None
        if cell.parts and cell.quantized_elsewhere:
            found.append(_quantized_twice(config["model"]))
        for kind, one in ((baselines, cell.baseline()), (asked, cell)):
            kind.setdefault(one.id, one)
            by_id.setdefault(one.id, config)
        each.append(cell)
    if found:
        raise ConfigError(dict.fromkeys(found))
    for remark in remarks:
        logger.warning(remark)
    return Sweep(tuple(placed.cell for placed in in_order((baselines | asked).values())), by_id, settings), each


def _quantized_twice(model: Mapping[str, Any]) -> str:
    return (
        f"model.checkpoint={model['checkpoint']}: is quantized already, by {model[QUANTIZED]}; quantizing it further would "
        "measure neither, so give the checkpoint that this one was made from, or method=none to measure this one as it is"
    )


def _with_checkpoints(configs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Set ``revision`` and ``files`` of each model to digests of its checkpoint; each checkpoint is read once.

    A model whose checkpoint is quantized already gets its method as ``quantized``.
    """
    known: dict[tuple[str, str | None], dict[str, str | None]] = {}
    # By identity, because configurations share models; each model is kept, so that no other takes its place in memory.
    named: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    found = []
    for config in configs:
        model = config["model"]
        if id(model) not in named:
            key = (model["checkpoint"], model["revision"])
            if key not in known:
                known[key] = {"revision": pinned_revision(model), "files": files_digest(model)}
                if (method := quantization_method(checkpoint_path(model["checkpoint"]))) is not None:
                    known[key][QUANTIZED] = method
            named[id(model)] = model, model | known[key]
        found.append(config | {"model": named[id(model)][1]})
    return found


def changed_files(sweep: Sweep, cells: Iterable[Cell]) -> list[str]:
    """Return a sentence for each task of ``cells`` whose data files changed since the sweep was planned."""
    found = []
    seen = set()
    for cell in cells:
        config = sweep.configs[cell.id]
        planned = (cell.task.get("files"), (cell.calibration or {}).get("files"))
        key = digest([cell.task, cell.calibration])
        if key in seen:
            continue
        seen.add(key)
        now = data_files(config) or DataFiles("", "")
        if (planned[0] or "") != now.evaluation or (planned[1] is not None and planned[1] != now.calibration):
            found.append(
                f"task.data: files of task={cell.names['task']} changed since the sweep was planned; plan it again, for "
                "which the same command will do"
            )
    return list(dict.fromkeys(found))


def _data_files(configs: Sequence[dict[str, Any]]) -> list[DataFiles | None]:
    """Digest the data of each configuration; raise a single ConfigError for all missing annotation files."""
    known: dict[str, DataFiles | None] = {}
    found, missing = [], []
    for config in configs:
        task, calibration = config["task"], calibration_of(config)
        asked = {name: task.get(name) for name in ("_target_", "data", "split", "limit", "calibration_split")}
        key = digest([asked, calibration])
        try:
            if key not in known:
                known[key] = data_files(config)
            found.append(known[key])
        except ConfigError as error:
            missing += error.problems
    if missing:
        raise ConfigError(missing)
    return found


def resolved(config: DictConfig) -> dict[str, Any]:
    """Convert a configuration to plain values, its parts in the order in which a model runs them; see ``plan``."""
    if "hydra" in config:
        config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException:
        if found := unasked(config) or unresolved(config) or without_value(config):
            raise ConfigError(found) from None
        raise
    plain = {str(key): value for key, value in dict(container).items()}  # type: ignore[arg-type]
    named = {part: where for part, where in plain["model"]["parts"].items() if where["module"]}
    # Parts with other names come last.
    first = [part for part in PART_ORDER if part in named]
    plain["model"]["parts"] = {part: named[part] for part in dict.fromkeys([*first, *named])}
    if isinstance(limits := plain["model"]["max_memory"], dict):
        # YAML reads a GPU's index as a number; JSON keys are strings.
        plain["model"]["max_memory"] = {str(place): limit for place, limit in limits.items()}
    return plain
