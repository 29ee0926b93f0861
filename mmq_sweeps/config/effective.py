"""From a resolved configuration to its cell: only what can change the result, and classes by the names they are known by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmq_sweeps.config.data_files import DataFiles
from mmq_sweeps.config.schema import CalibrationConfig, ModelConfig, PartConfig
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.cell import BLOCK_GROUPS, FULL_PRECISION_BITS, LAYER_KINDS, Cell
from mmq_sweeps.identity.declared import Declared, declared, declared_by
from mmq_sweeps.identity.roles import EVALUATION, LABEL

NONE = "none"
MODEL, PART, CALIBRATION = (declared_by(own) for own in (ModelConfig, PartConfig, CalibrationConfig))
Reading = Callable[[str], Declared]


def cell_of(config: Mapping[str, Any], files: DataFiles | None = None, read: Reading = declared) -> Cell:
    """The cell of a resolved configuration; ``files`` are the digests of its data, ``None`` if those are drawn.

    ``read`` finds what a class declares; a caller with many cells passes one that remembers. A ``ConfigError`` names a
    class that does not exist.
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
    """Nodes of the configuration by what their classes declare."""

    def __init__(self, read: Reading) -> None:
        self._read = read

    def counting(self, key: str, node: Mapping[str, Any], *left_out: Mapping[str, str]) -> dict[str, Any]:
        """What of ``node``, which lies at ``key``, counts."""
        try:
            found = self._read(node["_target_"])
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise ConfigError(f"{key}._target_={node['_target_']}: {error}") from error
        return found.counting(node, *left_out)

    def inputs(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """What of a task, and of the reader of its data, decides what calibration sees."""
        found = self.counting("task", task, LABEL, EVALUATION)
        if isinstance(data := found.get("data"), Mapping) and "_target_" in data:
            found["data"] = self.counting("task.data", data, LABEL, EVALUATION)
        return found


def _counting(own: Declared, node: Mapping[str, Any]) -> dict[str, Any]:
    """What counts of a node that has a type of ours, and therefore no ``_target_``."""
    return own.counting(node, LABEL)


def _shown(known_as: str) -> str:
    """A method's name for people: ``mine`` for ``lab.mine.Mine``; any other class of a user's own has its path."""
    module, _, name = known_as.rpartition(".")
    last = module.rpartition(".")[2]
    return last if last.replace("_", "").lower() == name.lower() else known_as


def _in_model_order(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The selections of parts that the model has."""
    return [(part, config["component"][part]) for part in config["model"]["parts"] if part in config["component"]]


def _group_size(selection: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    """A part's own group size; nothing where it is the one that the method has anyhow."""
    own = selection["group_size"]
    return {} if own is None or own == method.get("group_size") else {"group_size": own}
