"""A cell: the effective configuration of one measurement, and the hash that names it.

Effective means: only what can change the result. Two configurations that come to the same cell are measured once:
``method=none`` at four bit-widths, or ``bits=16``, is one full-precision baseline.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FULL_PRECISION_BITS = 16
BLOCK_GROUPS = ("front", "middle", "end")
LAYER_KINDS = ("attention", "mlp")
# Part of every id. Raise it when the same configuration starts to mean another computation.
SEMANTICS = 4
# What is left out because it names, places or speeds up without changing the result. A model's prompts are the task's,
# which holds the one that it uses.
MODEL_LABELS = ("name", "device", "device_map", "max_memory", "offload_dir", "prompts", "generation")
PART_LABELS = ("label",)
TASK_LABELS = ("name", "batch_size", "pair_batch_size", "model_classes")
# Where the files of a published set lie. A digest of its annotations says what they are.
DATA_PLACES = ("root", "annotations", "questions", "images", "file_names")
CALIBRATION_LABELS = ("batch_size",)
# What of a task decides the calibration inputs.
CALIBRATION_FIELDS = ("_target_", "version", "data", "calibration_split", "prompt", "text_length", "dropped_marks")


def digest(value: object) -> str:
    """SHA-256, in hexadecimal, of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Annotations:
    """Digests of the files that say what is evaluated, and from what calibration samples are drawn."""

    evaluation: str
    calibration: str


@dataclass(frozen=True)
class Cell:
    """One model x one task x one assignment of (method, bits) to linears.

    ``parts`` maps a quantized part to ``{"bits", "blocks", "layers"}``, and ``"group_size"`` where that is not the
    method's own; parts at full precision are absent. ``method`` is the method's ``_target_`` and fields, ``None`` at full
    precision; ``calibration`` only where the method uses it.
    """

    model: dict[str, Any]
    task: dict[str, Any]
    parts: dict[str, dict[str, Any]]
    method: dict[str, Any] | None
    calibration: dict[str, Any] | None
    names: dict[str, str]

    @staticmethod
    def of(config: Mapping[str, Any], annotations: Annotations | None = None) -> Cell:
        """The cell of a resolved configuration; ``annotations`` where the data are files that have digests."""
        method = dict(config["method"])
        calibration = method.pop("calibration", None)
        quantizes = method["_target_"] != "none"
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
        model = _without(config["model"], MODEL_LABELS)
        model["parts"] = {part: _without(where, PART_LABELS) for part, where in model["parts"].items()}
        task = _without(config["task"], TASK_LABELS)
        task["metrics"] = sorted(set(task["metrics"]))
        if annotations is not None:
            task["data"] = {**_without(task["data"], DATA_PLACES), "annotations": annotations.evaluation}
            calibration = calibration and {**calibration, "annotations": annotations.calibration}
        names = {"model": config["model"]["name"], "task": config["task"]["name"]}
        names["method"] = _method_name(method["_target_"]) if parts else "none"
        if not parts:
            return Cell(model, task, {}, None, None, names)
        return Cell(model, task, parts, method, calibration and _without(calibration, CALIBRATION_LABELS), names)

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

    def part_key(self, part: str) -> str:
        """Names the quantization of ``part`` (at full precision as well): equal in all cells that quantize it alike."""
        selection = self.parts.get(part)
        depends: dict[str, Any] = {"semantics": SEMANTICS, "model": self.model, "part": part, "selection": selection}
        if selection is not None:
            depends["method"] = self.method
            depends["calibration"] = self.calibration
            depends["data"] = self.calibration and {key: self.task.get(key) for key in CALIBRATION_FIELDS}
        return digest(depends)[:24]

    def output_key(self, part: str) -> str:
        """Names what ``part`` gives on the evaluation data: its own quantization and that of every part before it."""
        names = list(self.model["parts"])
        upstream = names[: names.index(part) + 1]
        task = {key: value for key, value in self.task.items() if key != "metrics"}
        return digest([task, *(self.part_key(name) for name in upstream)])[:24]

    def title(self) -> str:
        """A few words for progress lines: ``gptq vision 3 connector 3 language 3``."""
        bits = " ".join(f"{part} {bits_label(selection)}" for part, selection in self.parts.items())
        return f"{self.names['method']} {bits}" if bits else "full precision"


def _in_model_order(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The selections of parts that the model has."""
    return [(part, config["component"][part]) for part in config["model"]["parts"] if part in config["component"]]


def _group_size(selection: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    """A part's own group size; nothing where it is the one that the method has anyhow."""
    own = selection["group_size"]
    return {} if own is None or own == method.get("group_size") else {"group_size": own}


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


def _without(mapping: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


def _method_name(target: str) -> str:
    # mmq_sweeps.methods.gptq.GPTQ -> gptq: a method is one file, and the file's name is the method's.
    return target.rsplit(".", 2)[-2]
