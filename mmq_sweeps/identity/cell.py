"""A cell: the effective configuration of one measurement, and the hash that names it.

Effective means: only what can change the result. Two configurations that come to the same cell are measured once:
``method=none`` at four bit-widths, or ``bits=16``, is one full-precision baseline.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FULL_PRECISION_BITS = 16
BLOCK_GROUPS = ("front", "middle", "end")
LAYER_KINDS = ("attention", "mlp")
# Part of every id. Raise it when the same configuration starts to mean another computation.
SEMANTICS = 5


def digest(value: object) -> str:
    """SHA-256, in hexadecimal, of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Cell:
    """One model x one task x one assignment of (method, bits) to linears, without anything that cannot change the result.

    ``parts`` maps a quantized part to ``{"bits", "blocks", "layers"}``, and ``"group_size"`` where that is not the
    method's own; parts at full precision are absent. ``method`` has the method's fields, and as ``_target_`` the name that
    its class is known by; it is ``None`` at full precision. ``calibration`` is there only where the method uses it, and
    ``inputs`` with it: those fields of the task that decide what calibration sees. ``names`` are for people, and
    ``places`` maps the names that classes are known by to their dotted paths; neither is part of the id.
    """

    model: dict[str, Any]
    task: dict[str, Any]
    parts: dict[str, dict[str, Any]]
    method: dict[str, Any] | None
    calibration: dict[str, Any] | None
    names: dict[str, str]
    inputs: dict[str, Any] | None = None
    places: dict[str, str] = field(default_factory=dict)

    def baseline(self) -> Cell:
        """The same model and task at full precision."""
        return Cell(self.model, self.task, {}, None, None, {**self.names, "method": "none"})

    @property
    def effective(self) -> dict[str, Any]:
        """All that the id is made of."""
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
        """Twelve hexadecimal digits."""
        return digest(self.effective)[:12]

    @property
    def method_node(self) -> dict[str, Any]:
        """The method as ``build`` takes it: its class by its dotted path. A ValueError at full precision."""
        if self.method is None:
            raise ValueError("a cell at full precision has no method")
        name = self.method["_target_"]
        fields = {key: value for key, value in self.method.items() if key != "_version_"}
        return {**fields, "_target_": self.places.get(name, name)}

    def pass_key(self, part: str) -> str:
        """Names what one pass over calibration data measures of ``part``, whatever is quantized with it."""
        return self._key("pass", self._sampled, part=part)

    def statistics_key(self, unit: str) -> str:
        """Names the statistics of a unit's inputs at full precision, which serve every method and format."""
        return self._key("statistics", self._sampled, unit=unit)

    def unit_key(self, unit: str, format: Mapping[str, Any], behind: Mapping[str, Any] | None) -> str:
        """Names a unit quantized in ``format``; ``behind`` is the part's selection if units follow each other."""
        return self._key("unit", self._quantized, unit=unit, format=format, behind=behind)

    def part_key(self, part: str) -> str:
        """Names the quantization of ``part`` (at full precision as well): equal in all cells that quantize it alike."""
        selection = self.parts.get(part)
        depends = {"model": self.model} if selection is None else self._quantized
        return self._key("part", depends, part=part, selection=selection)

    def output_key(self, part: str) -> str:
        """Names what ``part`` gives on the evaluation data: its own quantization and that of every part before it."""
        names = list(self.model["parts"])
        upstream = names[: names.index(part) + 1]
        task = {key: value for key, value in self.task.items() if key != "metrics"}
        return self._key("output", {"task": task}, upstream=[self.part_key(name) for name in upstream])

    @property
    def _sampled(self) -> dict[str, Any]:
        """What the inputs of layers in calibration depend on."""
        return {"model": self.model, "calibration": self.calibration, "inputs": self.inputs}

    @property
    def _quantized(self) -> dict[str, Any]:
        return {**self._sampled, "method": self.method}

    @staticmethod
    def _key(kind: str, depends: Mapping[str, Any], **more: Any) -> str:
        """Twenty-four hexadecimal digits: the key of everything that is kept for other cells."""
        return digest({"semantics": SEMANTICS, "kind": kind, **depends, **more})[:24]

    def title(self) -> str:
        """A few words for progress lines: ``gptq vision 3 connector 3 language 3``."""
        bits = " ".join(f"{part} {bits_label(selection)}" for part, selection in self.parts.items())
        return f"{self.names['method']} {bits}" if bits else "full precision"


def bits_label(selection: Mapping[str, Any]) -> str:
    """``3``, ``3 g64`` with a group size of its own, ``3 (front attention)`` where that is not all of the part."""
    narrowed = [
        "+".join(selection[name])
        for name, everything in (("blocks", len(BLOCK_GROUPS)), ("layers", len(LAYER_KINDS)))
        if len(selection[name]) < everything
    ]
    bits = str(selection["bits"])
    if size := selection.get("group_size"):
        bits += f" g{size}" if isinstance(size, int) else f" {size}"
    return f"{bits} ({' '.join(narrowed)})" if narrowed else bits
