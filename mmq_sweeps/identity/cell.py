"""A cell: the effective configuration of a measurement, and its hash.

An effective configuration has only the values that can change the result, so equivalent configurations are the same cell
and run once: ``method=none`` at four bit-widths, or ``bits=16``, all give the full-precision baseline.
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
# Part of every id. Raise it when the same configuration starts to mean a different computation.
SEMANTICS = 5


def digest(value: object) -> str:
    """Return the hexadecimal SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Cell:
    """Effective configuration of a measurement: a model, a task, and a method and bit-width for each quantized linear.

    * ``parts``: quantized part -> ``{"bits", "blocks", "layers"}``, plus ``"group_size"`` if it differs from the method's.
      Parts at full precision are absent.
    * ``method``: the method's fields, with the name its class declares (``known_as``) as ``_target_``; None at full precision.
    * ``calibration``: None unless the method is calibrated.
    * ``inputs``: the task's fields that determine the calibration data; None without calibration.
    * ``names``: for display; not part of the id.
    * ``places``: declared class name -> dotted path; not part of the id.
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
        """Return the cell of the same model and task at full precision."""
        return Cell(self.model, self.task, {}, None, None, {**self.names, "method": "none"})

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
    def method_node(self) -> dict[str, Any]:
        """The method as a node for ``build``, its class given by dotted path; raises ValueError at full precision."""
        if self.method is None:
            raise ValueError("a cell at full precision has no method")
        name = self.method["_target_"]
        fields = {key: value for key, value in self.method.items() if key != "_version_"}
        return {**fields, "_target_": self.places.get(name, name)}

    def pass_key(self, part: str) -> str:
        """Return the key of a calibration pass over ``part``; it serves every method and format."""
        return self._key("pass", self._sampled, part=part)

    def statistics_key(self, unit: str) -> str:
        """Return the key of a unit's input statistics at full precision; they serve every method and format."""
        return self._key("statistics", self._sampled, unit=unit)

    def unit_key(self, unit: str, format: Mapping[str, Any], behind: Mapping[str, Any] | None) -> str:
        """Return the key of a unit quantized in ``format``.

        ``behind`` is the part's selection if units are quantized sequentially, each behind quantized predecessors; else None.
        """
        return self._key("unit", self._quantized, unit=unit, format=format, behind=behind)

    def part_key(self, part: str) -> str:
        """Return a key of how ``part`` is quantized, or left at full precision; cells that treat it alike share the key."""
        selection = self.parts.get(part)
        depends = {"model": self.model} if selection is None else self._quantized
        return self._key("part", depends, part=part, selection=selection)

    def output_key(self, part: str) -> str:
        """Return the key of the outputs of ``part`` on the evaluation data.

        It depends on the quantization of the part and of every part before it, and on the task without its metrics.
        """
        names = list(self.model["parts"])
        upstream = names[: names.index(part) + 1]
        task = {key: value for key, value in self.task.items() if key != "metrics"}
        return self._key("output", {"task": task}, upstream=[self.part_key(name) for name in upstream])

    @property
    def _sampled(self) -> dict[str, Any]:
        """Everything that the inputs of layers depend on during calibration."""
        return {"model": self.model, "calibration": self.calibration, "inputs": self.inputs}

    @property
    def _quantized(self) -> dict[str, Any]:
        return {**self._sampled, "method": self.method}

    @staticmethod
    def _key(kind: str, depends: Mapping[str, Any], **more: Any) -> str:
        """Hash an artifact key, twenty-four hexadecimal digits."""
        return digest({"semantics": SEMANTICS, "kind": kind, **depends, **more})[:24]

    def title(self) -> str:
        """Return a title for progress lines, as in ``gptq vision 3 connector 3 language 3``."""
        bits = " ".join(f"{part} {bits_label(selection)}" for part, selection in self.parts.items())
        return f"{self.names['method']} {bits}" if bits else "full precision"


def bits_label(selection: Mapping[str, Any]) -> str:
    """Format a selection: ``3``, ``3 g64`` with its own group size, ``3 (front attention)`` for a subset of the part."""
    narrowed = [
        "+".join(selection[name])
        for name, everything in (("blocks", len(BLOCK_GROUPS)), ("layers", len(LAYER_KINDS)))
        if name in selection and len(selection[name]) < everything  # Those at the ends have neither.
    ]
    bits = str(selection["bits"])
    if size := selection.get("group_size"):
        bits += f" g{size}" if isinstance(size, int) else f" {size}"
    return f"{bits} ({' '.join(narrowed)})" if narrowed else bits
