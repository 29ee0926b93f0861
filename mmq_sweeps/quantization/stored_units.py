"""Quantized units as artifacts: written once, read by every cell that selects them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from mmq_sweeps.memory import Computed, keep
from mmq_sweeps.methods.formats import QuantizedWeight
from mmq_sweeps.quantization.requests import Request
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.store import Store

# Ends the name of a stored tensor that replaces a parameter of the model, after the parameter's own name.
DENSE = ":dense"


class StoredUnit(NamedTuple):
    """A unit's weights by linear, the description that was stored with them, and other parameters that it replaces.

    ``dense`` holds by name the parameters that input scales were folded into: weights of norms, biases.
    """

    weights: dict[str, QuantizedWeight]
    description: dict[str, Any]
    dense: dict[str, Tensor]


class Dequantized(Computed[Tensor]):
    """Weights by linear, dequantized whenever one is asked for."""

    def __init__(self, quantized: Mapping[str, QuantizedWeight]) -> None:
        super().__init__(quantized, lambda name: quantized[name].dequantize())


@dataclass(frozen=True)
class QuantizedWeights:
    """Quantized weights by linear, the solvers' notes, and the seconds that calibrating and quantizing them took.

    ``dense`` has the parameters, by name, that the model takes other values of because input scales are folded into them.
    ``unchanged`` names the linears whose codes stand for the full-precision weight itself in every element: it is all
    zero, or lies on such a grid since training. ``experts_without_tokens`` counts, by unit, the experts that no calibration
    token reached, which are rounded to nearest, and all experts.
    """

    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"calibrate": 0.0, "quantize": 0.0})
    unchanged: list[str] = field(default_factory=list)
    experts_without_tokens: dict[str, tuple[int, int]] = field(default_factory=dict)


def load(
    requests: Iterable[Request], store: Store, cached: MutableMapping[str, StoredUnit] | None = None
) -> tuple[QuantizedWeights, list[Request]]:
    """Read the weights of ``requests``; also return those requests that the store lacks or has lost to corruption.

    Units in ``cached`` are not read again; others are added to it.
    """
    found, missing = QuantizedWeights(), []
    for request in requests:
        unit = cached.get(request.key) if cached is not None else None
        if unit is None:
            unit = read_unit(request, store)
            if unit is None:
                missing.append(request)
                continue
            if cached is not None:
                keep(cached, request.key, unit)
        description = unit.description
        found.weights.update(unit.weights)
        found.dense.update(unit.dense)
        found.notes.update(description["notes"])
        for stage in found.seconds:
            found.seconds[stage] += description["seconds"][stage]
        found.unchanged.extend(description["unchanged"])
        if "experts_without_tokens" in description:
            unreached, count = description["experts_without_tokens"]
            found.experts_without_tokens[request.unit.name] = (unreached, count)
    return found, missing


def read_unit(request: Request, store: Store) -> StoredUnit | None:
    """Read one unit; None if the store does not have it."""
    artifact = store.artifacts.load(ArtifactKind.QUANTIZED, request.key)
    if artifact is None:
        return None
    tensors, description = artifact
    weights = {}
    for name, shape in request.unit.linears.items():
        stored = {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}:")}
        weights[name] = QuantizedWeight.unpack(stored, shape, request.format)
    dense = {name.removesuffix(DENSE): tensor for name, tensor in tensors.items() if name.endswith(DENSE)}
    return StoredUnit(weights, description, dense)


def unit_bytes(unit: StoredUnit) -> int:
    """Return the memory that the codes of a unit take."""
    return sum(weight.codes.nbytes for weight in unit.weights.values())
