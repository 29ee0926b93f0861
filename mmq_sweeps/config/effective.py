"""Make a cell from a resolved configuration: drop values that cannot change the result, and name classes as declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmq_sweeps.config.data_files import DataFiles
from mmq_sweeps.config.instantiate import declaration
from mmq_sweeps.config.schema import CalibrationConfig, ModelConfig, PartConfig
from mmq_sweeps.identity.cell import BLOCK_GROUPS, FULL_PRECISION_BITS, LAYER_KINDS, Cell
from mmq_sweeps.identity.declared import Declared, declared, declared_by
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.identity.roles import EVALUATION, LABEL

NONE = "none"
MODEL, PART, CALIBRATION = (declared_by(own) for own in (ModelConfig, PartConfig, CalibrationConfig))
Reading = Callable[[str], Declared]


def cell_of(config: Mapping[str, Any], files: DataFiles | None = None, read: Reading = declared) -> Cell:
    """Make the cell of a resolved configuration.

    Args:
        files: digests of the data; None for generated data.
        read: returns the declaration of a class; pass a cached function if there are many cells.

    Raises:
        ConfigError: a class does not exist.
    """
    classes = _Classes(read)
    method = dict(config["method"])
    calibration = method.pop("calibration", None)
    quantizes = method["_target_"] != NONE
    parts = {
        part: {
            "bits": selection["bits"],
            "blocks": sorted(selection["blocks"], key=BLOCK_GROUPS.index),
            "layers": sorted(selection["layers"], key=LAYER_KINDS.index),
            **_group_size(selection, method),
        }
        for part, selection in _in_model_order(config)
        if quantizes and selection["bits"] != FULL_PRECISION_BITS
    }
    parts |= {
        part: {"bits": selection["bits"], **_group_size(selection, method)}
        for part in END_PARTS
        if config["model"].get(part) and (selection := config["component"].get(part)) is not None
        if quantizes and selection["bits"] != FULL_PRECISION_BITS
    }
    model = _counting(MODEL, config["model"])
    model["parts"] = {part: _counting(PART, where) for part, where in model["parts"].items()}
    task = classes.counting("task", config["task"], LABEL)
    if isinstance(data := config["task"].get("data"), Mapping) and "_target_" in data:
        task["data"] = classes.counting("task.data", data, LABEL)
    if "metrics" in task:
        task["metrics"] = sorted(set(task["metrics"]))
    if files is not None:
        task["files"] = files.evaluation
    names = {"model": config["model"]["name"], "task": config["task"]["name"], "method": NONE}
    if not parts:
        return Cell(model, task, {}, None, None, names)
    named = classes.counting("method", method, LABEL)
    names["method"] = _shown(named["_target_"])
    inputs = None
    if calibration is not None:
        calibration = _counting(CALIBRATION, calibration) | ({"files": files.calibration} if files is not None else {})
        inputs = classes.inputs(config["task"])
    return Cell(model, task, parts, named, calibration, names, inputs, {named["_target_"]: method["_target_"]})


class _Classes:
    """Filter for configuration nodes, according to the declarations of their classes."""

    def __init__(self, read: Reading) -> None:
        self._read = read

    def counting(self, key: str, node: Mapping[str, Any], *left_out: Mapping[str, str]) -> dict[str, Any]:
        """Return the fields of ``node`` (at ``key`` of the configuration) without those of the roles ``left_out``."""
        return declaration(f"{key}._target_", node["_target_"], self._read).counting(node, *left_out)

    def inputs(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a task, and of its data reader, that determine the calibration data."""
        found = self.counting("task", task, LABEL, EVALUATION)
        if isinstance(data := found.get("data"), Mapping) and "_target_" in data:
            found["data"] = self.counting("task.data", data, LABEL, EVALUATION)
        return found


def _counting(own: Declared, node: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the labels of a node whose type is fixed by the schema, so it has no ``_target_``."""
    return own.counting(node, LABEL)


def _shown(known_as: str) -> str:
    """Return a method's display name: ``mine`` for ``lab.mine.Mine``, otherwise ``known_as`` unchanged."""
    module, _, name = known_as.rpartition(".")
    last = module.rpartition(".")[2]
    return last if last.replace("_", "").lower() == name.lower() else known_as


def _in_model_order(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the selections of the model's parts, in the model's order."""
    return [(part, config["component"][part]) for part in config["model"]["parts"] if part in config["component"]]


def _group_size(selection: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part's own group size; empty if it equals the method's."""
    own = selection["group_size"]
    return {} if own is None or own == method.get("group_size") else {"group_size": own}
