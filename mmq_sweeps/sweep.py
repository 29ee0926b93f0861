"""A sweep: the cells of many configurations, checked before work starts, each once, in the order in which they share work.

A single configuration is a sweep of one. The full-precision cell of every model and task comes first, asked for or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmq_sweeps.annotations import annotations_of
from mmq_sweeps.cell import Annotations, Cell, digest
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.models.checkpoint import pinned_revision
from mmq_sweeps.order import in_order
from mmq_sweeps.schema import problems, unasked, unresolved, without_value

# Belong to the sweep as a whole; sweeping over them has no meaning.
OF_THE_SWEEP = ("store", "retry", "retries", "output", "tracker")


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


def plan(configs: Iterable[DictConfig]) -> Sweep:
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
    return Sweep(tuple(placed.cell for placed in in_order((baselines | asked).values())), by_id, settings)


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


def _resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, with the model's weights named by their revision."""
    if "hydra" in config:
        config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException:
        if found := unasked(config) or unresolved(config) or without_value(config):
            raise ConfigError(found) from None
        raise
    plain = {str(key): value for key, value in dict(container).items()}  # type: ignore[arg-type]
    plain["model"]["parts"] = {part: where for part, where in plain["model"]["parts"].items() if where["module"]}
    if isinstance(limits := plain["model"]["max_memory"], dict):
        # The number of a GPU is read as a number, which JSON has no keys of.
        plain["model"]["max_memory"] = {str(place): limit for place, limit in limits.items()}
    plain["model"]["revision"] = pinned_revision(plain["model"])
    return plain
