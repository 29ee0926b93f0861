"""Make a cell from a resolved configuration: drop values that cannot change the result, and name classes as declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmq_sweeps.config.assignment import parts_of
from mmq_sweeps.config.data_files import DataFiles
from mmq_sweeps.config.instantiate import declaration
from mmq_sweeps.config.sample import normal
from mmq_sweeps.config.schema import CalibrationConfig, ModelConfig, PartConfig
from mmq_sweeps.config.vision_weight import unnamed_problem, vision_tokens
from mmq_sweeps.config.widths import slots_of, widths
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.assignment import (
    FULL_PRECISION_BITS,
    Rule,
    Setting,
    Structure,
    method_name,
    numbered_of,
    rules_of_slots,
    rules_of_units,
)
from mmq_sweeps.identity.cell import QUANTIZED, QUANTIZED_ELSEWHERE, VISION_TOKENS, VISION_WEIGHT, Cell
from mmq_sweeps.identity.declared import Declared, declared, declared_by
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.identity.hashing import digest
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
    assigned = assignment_of(config, read)
    model = MODEL.counting(config["model"], LABEL)
    model["parts"] = {part: PART.counting(where, LABEL) for part, where in model["parts"].items()}
    task = _counting_of_task(config["task"], read, LABEL)
    # A field that changes nothing is no other task than one without the field.
    if not task.get("teacher_forced"):
        task.pop("teacher_forced", None)
    sample = task.pop("sample", None)
    if sample is not None:
        task["sample"] = normal(sample)
    if "metrics" in task:
        task["metrics"] = sorted(set(task["metrics"]))
    if files is not None:
        task["files"] = files.evaluation
    methods = QUANTIZED_ELSEWHERE if model.get(QUANTIZED) and not assigned.parts else assigned.methods
    names = {"model": config["model"]["name"], "task": config["task"]["name"], "method": methods}
    if assigned.method is None:
        return Cell(model, task, {}, None, None, names)
    calibration = inputs = None
    if (drawn := assigned.calibration) is not None:
        calibration = CALIBRATION.counting(drawn, LABEL) | ({"files": files.calibration} if files is not None else {})
        # The fields that determine the calibration data.
        inputs = _counting_of_task(config["task"], read, LABEL, EVALUATION)
    own_sizes = [part for part in assigned.parts if config["component"][part]["group_size"] is not None]
    uncalibrated, places = assigned.uncalibrated, assigned.places
    parts, method = assigned.parts, assigned.method
    return Cell(model, task, parts, method, calibration, names, inputs, places, uncalibrated, own_sizes)


@dataclass(frozen=True)
class Assigned:
    """The assignment of a configuration, as ``Cell`` describes it; ``methods`` names its methods for a person."""

    parts: dict[str, dict[str, Any]]
    method: dict[str, Any] | None
    methods: str = NONE
    calibration: Mapping[str, Any] | None = None
    uncalibrated: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)


def assignment_of(config: Mapping[str, Any], read: Reading = declared) -> Assigned:
    """Return the canonical assignment of a configuration, of which only model, component and method are read.

    A ``vision_weight`` counts if a part that it is given for sees both vision and text tokens. A ConfigError says which
    parts see both without the model's naming them.
    """
    methods = _Methods(read)
    rules = _all_rules(config, methods)
    if not rules:
        return Assigned({}, None)
    weights = {part: weight for part, found in rules.items() if (weight := methods.vision_weight(found)) is not None}
    unnamed = [unnamed_problem(config["model"], part, weight) for part, weight in weights.items()]
    if problems := [problem for problem in unnamed if problem is not None]:
        raise ConfigError(problems)
    kinds = vision_tokens(config["model"])
    weighted = [part for part in weights if part in kinds]
    if weights and not weighted:
        methods = _Methods(read, weights=False)
        rules = _all_rules(config, methods)
    used = list(dict.fromkeys(rule.setting.method for found in rules.values() for rule in found))
    main = methods.common(used)
    parts = {part: _selection(found, main, methods) for part, found in rules.items()}
    for part in END_PARTS:
        if part in parts:
            parts[part]["module"] = config["model"][part]
    for part in weighted:
        parts[part][VISION_TOKENS] = kinds[part]
    calibration = next((methods.calibration[key] for key in used if methods.calibration[key] is not None), None)
    uncalibrated = {methods.known_as(key) for key in used if methods.calibration[key] is None}
    return Assigned(
        parts,
        main,
        _method_names(rules, methods),
        calibration,
        # Plain from `calibration` if that is absent.
        sorted(uncalibrated) if calibration is not None else [],
        {methods.known_as(key): methods.place[key] for key in used},
    )


def _all_rules(config: Mapping[str, Any], methods: _Methods) -> dict[str, list[Rule]]:
    return {
        part: found
        for part in parts_of(config["model"])
        if part in config["component"] and (found := _rules(config["component"][part], config["method"], methods, part))
    }


class _Methods:
    """The methods of a configuration, by a key of their counting fields; those of ``weights=False`` weigh no kind of token."""

    def __init__(self, read: Reading, weights: bool = True) -> None:
        self._read, self._weights = read, weights
        self.node: dict[str, dict[str, Any]] = {}
        self.calibration: dict[str, Mapping[str, Any] | None] = {}
        self.place: dict[str, str] = {}
        # Most units of an assignment have one method. By identity: nodes live as long as the configuration.
        self._known: dict[tuple[int, Any], tuple[str, Any]] = {}

    def key(self, at: str, node: Mapping[str, Any], group_size: Any) -> tuple[str, Any]:
        """Register ``node``, at ``at`` of the configuration; return its key and the group size that it has no field for."""
        asked = (id(node), group_size)
        if asked in self._known:
            return self._known[asked]
        own = dict(node)
        calibration = own.pop("calibration", None)
        counting = _counting(at, own, self._read, LABEL)
        if VISION_WEIGHT in counting:
            weight = counting.pop(VISION_WEIGHT)
            counting |= {VISION_WEIGHT: float(weight)} if self._weights else {}  # 1 and 1.0 are one weight
        if group_size is not None and "group_size" in counting:
            counting["group_size"], group_size = group_size, None
        key = digest(counting)
        self.node[key], self.calibration[key], self.place[key] = counting, calibration, own["_target_"]
        self._known[asked] = key, group_size
        return key, group_size

    def common(self, used: Sequence[str]) -> dict[str, Any]:
        """Return the method that a selection leaves out: the first, with the group size that all its rules share.

        If they differ in it, ``channel``: it must not depend on how the assignment was written.
        """
        first = self.node[used[0]]
        alike = [self.node[key] for key in used if _apart_from_size(self.node[key]) == _apart_from_size(first)]
        if all(node == first for node in alike):
            return first
        return {**first, "group_size": "channel"}

    def vision_weight(self, rules: Sequence[Rule]) -> float | None:
        """Return the first ``vision_weight`` of a method of ``rules``; None if none has any."""
        return next((w for rule in rules if (w := self.node[rule.setting.method].get(VISION_WEIGHT)) is not None), None)

    def known_as(self, key: str) -> str:
        name: str = self.node[key]["_target_"]
        return name


def _rules(selection: Mapping[str, Any], common: Mapping[str, Any], methods: _Methods, part: str) -> list[Rule]:
    """Return the canonical rules of a part; empty at full precision."""

    def setting(bits: int, own: Mapping[str, Any]) -> Setting | None:
        node = own.get("method") or common
        if bits == FULL_PRECISION_BITS or node["_target_"] == NONE:
            return None
        at = f"component.{part}.method" if own.get("method") else "method"
        return Setting(bits, *methods.key(at, node, own["group_size"]))

    if part in END_PARTS:
        whole = setting(selection["bits"], selection)
        return [Rule(whole)] if whole is not None else []
    by_slot = widths(selection)
    made = {bits: setting(bits, selection) for bits in set(by_slot.values())}
    slots = {slot: found for slot, bits in by_slot.items() if (found := made[bits]) is not None}
    for rule in selection.get("slots") or ():
        size = selection["group_size"] if rule["group_size"] is None else rule["group_size"]
        if (ruled := setting(rule["bits"], {**rule, "group_size": size})) is not None:
            slots |= dict.fromkeys(slots_of(rule), ruled)
    if not selection.get("units"):
        return rules_of_slots(slots)
    known = selection["structure"]
    structure = Structure(known["blocks"], tuple((block, kind) for block, kind in known["units"]))
    units = {unit: slots[slot] for slot, inside in structure.slots().items() if slot in slots for unit in inside}
    for label, given in selection["units"].items():
        (unit,) = numbered_of([label])
        size = selection["group_size"] if given["group_size"] is None else given["group_size"]
        units.pop(unit, None)
        if (numbered := setting(given["bits"], {**given, "group_size": size})) is not None:
            units[unit] = numbered
    return rules_of_units(units, structure)


def _apart_from_size(method: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in method.items() if name != "group_size"}


def _selection(rules: Sequence[Rule], main: Mapping[str, Any], methods: _Methods) -> dict[str, Any]:
    """Return the selection of ``rules``, in which the fields ``main`` of a method go without saying."""
    found = [{"bits": rule.setting.bits, **rule.where(), **_differs(rule.setting, main, methods)} for rule in rules]
    return found[0] if len(found) == 1 else {"rules": found}


def _differs(setting: Setting, main: Mapping[str, Any], methods: _Methods) -> dict[str, Any]:
    own = methods.node[setting.method]
    found = {} if setting.group_size is None else {"group_size": setting.group_size}
    if own == main:
        return found
    if "group_size" in own and _apart_from_size(own) == _apart_from_size(main):
        return {"group_size": own["group_size"]}
    return {**found, "method": own}


def _method_names(rules: Mapping[str, Sequence[Rule]], methods: _Methods) -> str:
    """Name the methods of a cell, with their parts if there are several: ``rtn (vision), gptq (connector, language)``."""
    parts: dict[str, list[str]] = {}
    for part, found in rules.items():
        for name in dict.fromkeys(method_name(methods.known_as(rule.setting.method)) for rule in found):
            parts.setdefault(name, []).append(part)
    if len(parts) == 1:
        return next(iter(parts))
    return ", ".join(f"{name} ({', '.join(inside)})" for name, inside in parts.items())


def _counting(key: str, node: Mapping[str, Any], read: Reading, *left_out: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of ``node``, at ``key`` of the configuration, without those of the roles ``left_out``."""
    return declaration(f"{key}._target_", node["_target_"], read).counting(node, *left_out)


def _counting_of_task(task: Mapping[str, Any], read: Reading, *left_out: Mapping[str, str]) -> dict[str, Any]:
    """Return the same of a task and of the reader of its data."""
    found = _counting("task", task, read, *left_out)
    if isinstance(data := found.get("data"), Mapping) and "_target_" in data:
        found["data"] = _counting("task.data", data, read, *left_out)
    return found
