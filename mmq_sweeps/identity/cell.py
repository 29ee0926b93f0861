"""A cell: the effective configuration of a measurement, and its hash.

An effective configuration has only the values that can change the result, so equivalent configurations are the same cell
and run once: ``method=none`` at four bit-widths, or ``bits=16``, all give the full-precision baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmq_sweeps.identity.assignment import (
    BLOCK_GROUPS,
    FULL_PRECISION_BITS,
    LAYER_KINDS,
    bits_label,
    part_order,
    rules_in,
)
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.identity.hashing import digest

__all__ = [
    "BLOCK_GROUPS",
    "FULL_PRECISION_BITS",
    "LAYER_KINDS",
    "QUANTIZED",
    "QUANTIZED_ELSEWHERE",
    "Cell",
    "MethodRule",
    "bits_label",
    "digest",
    "is_quantized_elsewhere",
]
# Part of every id. Raise it when the same configuration starts to mean a different computation.
SEMANTICS = 6
# The method of a cell whose checkpoint is quantized already, for a person.
QUANTIZED_ELSEWHERE = "quantized elsewhere"
# The field of a planned model that names the method of such a checkpoint; full-precision models have none.
QUANTIZED = "quantized"
# The field of a method with the share of vision tokens in its objective, and the field of a part that says which tokens these
# are; the selection of a part has it, too, if its method weighs them.
VISION_WEIGHT, VISION_TOKENS = "vision_weight", "vision_tokens"


@dataclass(frozen=True)
class MethodRule:
    """A rule of a part with its method spelled out.

    ``method`` has the fields of the method, the rule's group size among them, and the declared name as ``_target_``.
    ``group_size`` is set only if the method has no such field. ``key`` is the method's place in the configuration.
    ``vision_tokens`` says which tokens are vision tokens, if the method weighs them and the part sees others, too; else the
    method has no ``vision_weight``, which would change nothing.
    """

    rule: Mapping[str, Any]
    method: dict[str, Any]
    calibrated: bool
    group_size: int | str | None
    key: str
    vision_tokens: str | None = None

    @property
    def bits(self) -> int:
        """The bit-width."""
        width: int = self.rule["bits"]
        return width

    @property
    def normal(self) -> dict[str, Any]:
        """The rule apart from its method."""
        left = {name: value for name, value in self.rule.items() if name not in ("method", "group_size")}
        return left if self.group_size is None else {**left, "group_size": self.group_size}


@dataclass(frozen=True)
class Cell:
    """Effective configuration of a measurement: a model, a task, and a method and bit-width for each quantized linear.

    * ``parts``: quantized part -> its selection (``assignment.py``). Parts at full precision are absent.
    * ``method``: the fields of the first rule's method, with the name its class declares (``known_as``) as ``_target_``;
      None at full precision. A rule with another method has it in its selection.
    * ``calibration``: None unless a method is calibrated.
    * ``inputs``: the task's fields that determine the calibration data; None without calibration.
    * ``names``: for display; not part of the id.
    * ``places``: declared class name -> dotted path; not part of the id.
    * ``uncalibrated``: declared names of the methods that take no calibration data; follows from ``method`` and ``parts``.
    * ``own_sizes``: parts whose group size the configuration gives for themselves, for messages; not part of the id.
    """

    model: dict[str, Any]
    task: dict[str, Any]
    parts: dict[str, dict[str, Any]]
    method: dict[str, Any] | None
    calibration: dict[str, Any] | None
    names: dict[str, str]
    inputs: dict[str, Any] | None = None
    places: dict[str, str] = field(default_factory=dict)
    uncalibrated: list[str] = field(default_factory=list)
    own_sizes: list[str] = field(default_factory=list)

    def baseline(self) -> Cell:
        """Return the cell of the same model and task of which nothing is quantized here."""
        method = QUANTIZED_ELSEWHERE if self.quantized_elsewhere else "none"
        return Cell(self.model, self.task, {}, None, None, {**self.names, "method": method})

    @property
    def quantized_elsewhere(self) -> bool:
        """True if the model's checkpoint is quantized already; its cell has no parts of its own."""
        return is_quantized_elsewhere(self.effective)

    @property
    def effective(self) -> dict[str, Any]:
        """All values that the id is hashed from."""
        return {
            "semantics": SEMANTICS,
            "model": self.model,
            "task": self.task,
            "parts": self.parts,
            "method": self.method,
            "calibration": self.calibration,
        }

    @property
    def id(self) -> str:
        """Id of the cell, twelve hexadecimal digits."""
        return digest(self.effective)[:12]

    @property
    def order(self) -> list[str]:
        """Names of the model's parts in the order in which they run, and then of quantized single tensors."""
        return [*self.model["parts"], *(part for part in END_PARTS if part in self.parts)]

    def rules(self, part: str) -> list[MethodRule]:
        """Return the rules of ``part``, with the method of each; empty at full precision."""
        return [self._spelled_out(part, rule) for rule in rules_in(self.parts[part])] if part in self.parts else []

    def _spelled_out(self, part: str, rule: Mapping[str, Any]) -> MethodRule:
        method, size = dict(rule.get("method") or self.method or {}), rule.get("group_size")
        if size is not None and "group_size" in method:
            method["group_size"], size = size, None
        key = f"component.{part}.method" if "method" in rule else "method"
        kinds = self.parts[part].get(VISION_TOKENS) if VISION_WEIGHT in method else None
        if kinds is None:
            method.pop(VISION_WEIGHT, None)
        calibrated = self.calibration is not None and method["_target_"] not in self.uncalibrated
        return MethodRule(rule, method, calibrated, size, key, kinds)

    def node(self, method: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``method``, as it stands in a rule, as a node for ``build``, its class given by dotted path."""
        name = method["_target_"]
        fields = {key: value for key, value in method.items() if key != "_version_"}
        return {**fields, "_target_": self.places.get(name, name)}

    def pass_key(self, part: str, calibrated: bool = True) -> str:
        """Return the key of a calibration pass over ``part``; it serves every method and format."""
        return self._key("pass", self._sampled(calibrated), part=part)

    def statistics_key(self, unit: str) -> str:
        """Return the key of a unit's input statistics at full precision; they serve every method and format."""
        return self._key("statistics", self._sampled(True), unit=unit)

    def kinds_key(self, unit: str, part: str) -> str:
        """Return the key of these statistics of vision and text tokens apart, for a unit of ``part``."""
        kinds = self.parts[part][VISION_TOKENS]
        return self._key("statistics by kind", self._sampled(True), unit=unit, vision_tokens=kinds)

    def unit_key(self, unit: str, rule: MethodRule, format: Mapping[str, Any], behind: str | None = None) -> str:
        """Return the key of a unit quantized in ``format`` by the method of ``rule``.

        ``behind`` is the part if units are quantized sequentially, each behind quantized predecessors; else None.
        """
        before = None if behind is None else self._quantization(behind)[1]
        return self._key("unit", self._quantized(rule), unit=unit, format=format, behind=before)

    def part_key(self, part: str) -> str:
        """Return a key of how ``part`` is quantized, or left at full precision; cells that treat it alike share the key."""
        depends, selection = self._quantization(part)
        return self._key("part", depends, part=part, selection=selection)

    def _quantization(self, part: str) -> tuple[dict[str, Any], Any]:
        """Return the inputs of the quantization of ``part``, and its selection; methods are spelled out if they differ."""
        rules = self.rules(part)
        if not rules:
            return {"model": self.model}, None
        if all(rule.method == rules[0].method for rule in rules):
            normal = [rule.normal for rule in rules]
            return self._quantized(rules[0]), normal[0] if len(normal) == 1 else {"rules": normal}
        calibrated = any(rule.calibrated for rule in rules)
        return self._sampled(calibrated), [{**rule.normal, "method": rule.method} | _kinds_of(rule) for rule in rules]

    def output_key(self, part: str) -> str:
        """Return the key of the outputs of ``part`` on the evaluation data.

        It depends on the quantization of the part and of every part before it, and on the task without its metrics.
        """
        names = list(self.model["parts"])
        upstream = names[: names.index(part) + 1]
        if len(upstream) > 1:
            # A connector may read texts, whose embeddings may be tied to the head.
            upstream += [name for name in END_PARTS if name in self.parts]
        task = {key: value for key, value in self.task.items() if key != "metrics"}
        return self._key("output", {"task": task}, upstream=[self.part_key(name) for name in upstream])

    def _sampled(self, calibrated: bool) -> dict[str, Any]:
        """Everything that the inputs of layers depend on during calibration; only the model without one."""
        calibration, inputs = (self.calibration, self.inputs) if calibrated else (None, None)
        return {"model": self.model, "calibration": calibration, "inputs": inputs}

    def _quantized(self, rule: MethodRule) -> dict[str, Any]:
        return {**self._sampled(rule.calibrated), "method": rule.method} | _kinds_of(rule)

    @staticmethod
    def _key(kind: str, depends: Mapping[str, Any], **more: Any) -> str:
        """Hash an artifact key, twenty-four hexadecimal digits."""
        return digest({"semantics": SEMANTICS, "kind": kind, **depends, **more})[:24]

    def title(self) -> str:
        """Return a title for progress lines, as in ``gptq vision 3 connector 3 language 3``."""
        bits = " ".join(f"{part} {bits_label(self.parts[part])}" for part in sorted(self.parts, key=part_order))
        if self.quantized_elsewhere:
            return QUANTIZED_ELSEWHERE
        return f"{self.names['method']} {bits}" if bits else "full precision"


def _kinds_of(rule: MethodRule) -> dict[str, str]:
    return {} if rule.vision_tokens is None else {VISION_TOKENS: rule.vision_tokens}


def is_quantized_elsewhere(effective: Mapping[str, Any]) -> bool:
    """Return True if the effective configuration of a cell has a checkpoint that is quantized already."""
    return bool(effective.get("model", {}).get(QUANTIZED))
