"""Sizes of a checkpoint that is quantized already, by part, from the tensors in its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mmq_sweeps.identity.loads_in import DEQUANTIZED
from mmq_sweeps.models.quantized.layouts import QuantizedLinear
from mmq_sweeps.models.quantized.loaders import faults, packages, verdicts
from mmq_sweeps.models.quantized.names import FittedCheckpoint
from mmq_sweeps.quantization.size import measure_stored
from mmq_sweeps.quantization.targets import Part

# Quantized linears that lie in no part: projectors, and those of a model whose parts are not known.
NO_PART = "outside"


def measure_elsewhere(fitted: FittedCheckpoint, parts: Iterable[Part]) -> dict[str, Any]:
    """Return the sizes of ``measure`` for a checkpoint as it is stored, and the bytes of its files as ``stored_bytes``.

    Quantized linears count all that their files hold, everything else 16 bits, as in every other record, so that cells can be
    compared. The files may hold the rest in 32 bits, which only ``stored_bytes`` tells.
    """
    size = measure_stored(fitted.model, parts, fitted.linears)
    return {**size, "total": {**size["total"], "stored_bytes": fitted.checkpoint.size}}


def storage(fitted: FittedCheckpoint, parts: Mapping[str, Part]) -> dict[str, list[dict[str, Any]]]:
    """Return how each part is stored: an entry for each width, group size, symmetry and layout, with its linears.

    Only parts that hold quantized linears are there, and ``NO_PART`` last.
    """
    of_linear = {name: part.name for part in parts.values() for unit in part.units for name in unit.linears}
    # Tied embeddings and head are one module's weight; the part that is found first has it.
    grouped: dict[str, dict[tuple[Any, ...], list[QuantizedLinear]]] = {name: {} for name in (*parts, NO_PART)}
    for name, linear in fitted.linears.items():
        key = (linear.widths[0] if linear.widths else None, linear.group_size, linear.symmetric, linear.layout)
        grouped[of_linear.get(name, NO_PART)].setdefault(key, []).append(linear)
    return {
        name: [_entry(key, linears) for key, linears in sorted(own.items(), key=lambda entry: str(entry[0]))]
        for name, own in grouped.items()
        if own
    }


def _entry(key: tuple[Any, ...], linears: list[QuantizedLinear]) -> dict[str, Any]:
    bits, group_size, symmetric, layout = key
    weights, stored = sum(linear.weights for linear in linears), sum(linear.bits for linear in linears)
    return {
        "bits": bits,
        "group_size": group_size,
        "symmetric": symmetric,
        "format": layout,
        "linears": len(linears),
        "weights": weights,
        "bpw_exact": stored / weights,
        "bytes": stored // 8,
    }


def notes(fitted: FittedCheckpoint, parts: Mapping[str, Part]) -> dict[str, Any]:
    """Return the notes of a record on the checkpoint: its method, its widths by part in words, and the loaders that take it."""
    configuration = fitted.checkpoint.configuration
    return {
        "method": configuration.method if configuration is not None else None,
        "bits": {name: _words(part, own) for name, own in storage(fitted, parts).items() for part in [parts.get(name)]},
        "loads_in": {verdict.loader: verdict.told() for verdict in verdicts(fitted)},
    }


def describe(fitted: FittedCheckpoint, parts: Mapping[str, Part]) -> dict[str, Any]:
    """Return everything that the files say of a checkpoint: sizes and storage of each part, and the verdicts of loaders."""
    size, stored = measure_elsewhere(fitted, parts.values()), storage(fitted, parts)
    configuration = fitted.checkpoint.configuration
    return {
        "checkpoint": str(fitted.checkpoint.folder),
        "class": type(fitted.model).__name__,
        "method": configuration.method if configuration is not None else None,
        "said_by": configuration.source if configuration is not None else None,
        "parts": {name: {**size["parts"][name], "stored": stored.get(name, [])} for name in parts},
        "outside": stored.get(NO_PART, []),
        "total": size["total"],
        "loads_in": {
            verdict.loader: {"loads": verdict.loads, "needs": list(verdict.needs), "reasons": list(verdict.reasons)}
            for verdict in verdicts(fitted)
        },
        "packages": packages(configuration.method) if configuration is not None else {},
        "faults": list(faults(fitted)),
    }


def loads_in(fitted: FittedCheckpoint) -> list[str]:
    """Return the loaders that take the checkpoint as it is, or only ``DEQUANTIZED``, as records have them."""
    return [verdict.loader for verdict in verdicts(fitted) if verdict.loads] or [DEQUANTIZED]


def _words(part: Part | None, own: list[dict[str, Any]]) -> str:
    """Return widths and group sizes for a person: ``4 g128``, or ``4 g128, 3`` with the widest share first."""
    shares: Counter[str] = Counter()
    for entry in own:
        size = entry["group_size"]
        suffix = f" g{size}" if isinstance(size, int) else "" if size == "channel" else f" {size}"
        shares[f"{'?' if entry['bits'] is None else entry['bits']}{suffix}"] += entry["weights"]
    told = [text for text, _ in shares.most_common()]
    rest = sum(rows * columns for unit in (part.units if part else ()) for rows, columns in unit.linears.values())
    return ", ".join(told) + (", rest 16" if part is not None and rest > sum(shares.values()) else "")
