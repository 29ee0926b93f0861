"""Solve one unit: run a method on its linears in several formats, and pack the results for the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmq_sweeps.memory import ran_out_of_memory
from mmq_sweeps.methods.affine import Format
from mmq_sweeps.methods.base import LayerStats, Method, Solution
from mmq_sweeps.methods.magnitude import solve_relative
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.calibration import SharedStats
from mmq_sweeps.quantization.targets import Unit


@dataclass
class PackedUnit:
    """The packed tensors of a unit in one format, the solver's notes, and the linears that quantization left unchanged."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)

    def add(self, names: Sequence[str], originals: Sequence[Tensor], solution: Solution) -> None:
        """Pack the solution of the linears ``names``, whose full-precision weights are ``originals`` ``[O, I]``."""
        if solution.notes:
            self.notes |= dict.fromkeys(names, solution.notes)
        for name, original, quantized in zip(names, originals, solution.weights, strict=True):
            self.tensors |= {f"{name}:{key}": tensor for key, tensor in quantized.pack().items()}
            if torch.equal(quantized.dequantize().to(original.device, original.dtype), original):
                self.unchanged.append(name)


@dataclass
class Solved:
    """The results of one unit by the place of the format in the list asked for: packed units, and errors of the others."""

    packed: dict[int, PackedUnit]
    errors: dict[int, Exception] = field(default_factory=dict)

    def fail(self, place: int, error: Exception) -> None:
        """Replace what there is of a format by the error that it met."""
        self.packed.pop(place, None)
        self.errors[place] = error


def solve_unit(
    unit: Unit, method: Method, formats: Sequence[Format], loaded: LoadedModel, stats: Sequence[SharedStats] | None
) -> Solved:
    """Quantize ``unit`` in each of ``formats``; a format that fails leaves the others."""
    solved = Solved({place: PackedUnit() for place in range(len(formats))})
    try:
        originals = {name: loaded.weight(name) for name in unit.linears}
        # Before the statistics: a weight that is not finite spoils them, and they are not to blame.
        weights = {name: _finite(original, name) for name, original in originals.items()}
        for names, shared in _by_input(unit, stats):
            going = dict.fromkeys(solved.packed)
            solutions, errors = _solve_each(method, [weights[name] for name in names], shared, formats, list(going))
            for place, error in errors.items():
                solved.fail(place, _named(error, names))
            for place, solution in solutions.items():
                solved.packed[place].add(names, [originals[name] for name in names], solution)
    except (ValueError, RuntimeError) as error:
        for place in list(solved.packed):
            solved.fail(place, error)
    return solved


def _solve_each(
    method: Method,
    weights: Sequence[Tensor],
    stats: LayerStats | None,
    formats: Sequence[Format],
    places: Sequence[int],
) -> tuple[dict[int, Solution], dict[int, Exception]]:
    """Solve the formats at ``places`` together; if that fails, each alone."""
    if not places:
        return {}, {}
    try:
        found = solve_relative(method, weights, stats, [formats[place] for place in places])
        return dict(zip(places, found, strict=True)), {}
    except (ValueError, RuntimeError) as error:
        if len(places) == 1:
            return {}, {places[0]: error}
    solutions: dict[int, Solution] = {}
    errors: dict[int, Exception] = {}
    for place in places:
        own, failed = _solve_each(method, weights, stats, formats, [place])
        solutions |= own
        errors |= failed
    return solutions, errors


def _named(error: Exception, names: Sequence[str]) -> Exception:
    """Return ``error`` with the linears it is about; refused memory keeps its own error."""
    if ran_out_of_memory(error):
        return error
    # The class says whether the input was wrong or the solver failed.
    kind = RuntimeError if isinstance(error, RuntimeError) else ValueError
    named = kind(f"{', '.join(names)}: {error}")
    named.__cause__ = error
    return named


def _finite(weight: Tensor, name: str) -> Tensor:
    """Return ``weight`` in single precision; a ValueError with its name if a value is infinite or NaN."""
    weight = weight.float()
    if wrong := weight.numel() - int(weight.isfinite().sum()):
        raise ValueError(f"{name}: {wrong} of {weight.numel()} weights are not finite")
    return weight


def _by_input(unit: Unit, stats: Sequence[SharedStats] | None) -> list[tuple[list[str], LayerStats | None]]:
    """Group the unit's linears by the input they share; a ValueError if there are no usable statistics for one."""
    if stats is None:
        return [([name], None) for name in unit.linears]
    groups = [([name for name in shared.linears if name in unit.linears], shared) for shared in stats]
    reached = {name for names, _ in groups for name in names}
    if unreached := [name for name in unit.linears if name not in reached]:
        raise ValueError(f"{', '.join(unreached)}: no calibration token reached it")
    for names, shared in groups:
        if names and shared.not_finite:
            raise ValueError(
                f"{', '.join(names)}: {shared.not_finite} of {shared.stats.count} calibration tokens that reach it are "
                "not finite"
            )
    return [(names, shared.stats) for names, shared in groups if names]
