"""Solve one unit: run a method on its linears in several formats, and pack the results for the store."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmq_sweeps.memory import ran_out_of_memory
from mmq_sweeps.methods.awq_search.errors import output_error
from mmq_sweeps.methods.base import LayerStats, Method, Solution
from mmq_sweeps.methods.formats import Format
from mmq_sweeps.methods.magnitude import solve_relative
from mmq_sweeps.methods.rtn import RoundToNearest
from mmq_sweeps.models.experts import module_of, parse
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.folding import Fold, FoldedScales
from mmq_sweeps.quantization.shared_stats import SharedStats
from mmq_sweeps.quantization.stored_units import DENSE
from mmq_sweeps.quantization.targets import Unit

# Linears of a unit that share an input, and its statistics; None for methods that need none.
Group = tuple[list[str], SharedStats | None]


@dataclass
class PackedUnit:
    """The packed tensors of a unit in one format, the solver's notes, and the linears that quantization left unchanged.

    ``scales`` folds input scales and has the parameters beside quantized weights that take other values for it. ``errors``
    has a row ``(weights, weight error, output error)`` for each linear. ``without_tokens`` counts the experts that no
    calibration token reached, which are rounded to nearest (``kmeans``: to values fitted without weights), and all experts.
    """

    scales: FoldedScales
    tensors: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    without_tokens: tuple[int, int] | None = None
    errors: list[tuple[int, float, float | None]] = field(default_factory=list, repr=False)

    @property
    def error(self) -> dict[str, float | None]:
        """The mean of the linears' errors by their number of weights.

        A linear's ``weight_error`` is ``|E|^2 / |W|^2`` for the change ``E`` of its weight ``W``; its ``output_error`` the same
        of its outputs, ``tr(E G E^T) / tr(W G W^T)`` with the Gram matrix ``G`` of its inputs; None without statistics.
        """
        weights = sum(count for count, _, _ in self.errors)

        def mean(values: Iterable[float]) -> float:
            return sum(row[0] * value for row, value in zip(self.errors, values, strict=True)) / max(weights, 1)

        outputs = [output for _, _, output in self.errors if output is not None]
        return {
            "weight_error": mean(error for _, error, _ in self.errors),
            "output_error": mean(outputs) if len(outputs) == len(self.errors) > 0 else None,
        }

    def add(
        self,
        names: Sequence[str],
        originals: Sequence[Tensor],
        solution: Solution,
        fold: Fold | None,
        stats: LayerStats | None,
        squares: Mapping[str, tuple[float, float]],
    ) -> None:
        """Pack the solution of the linears ``names``, whose full-precision weights are ``originals`` ``[O, I]``.

        ``fold`` is where their input scale goes, if anywhere; ``stats`` are those of their input. ``squares`` are
        ``squares_of`` the originals, which serve every format.
        """
        solution, restored = self.scales.folded(names, originals, solution, fold)
        if solution.notes:
            self.notes |= dict.fromkeys(names, solution.notes)
        for name, original, quantized, own in zip(names, originals, solution.weights, restored, strict=True):
            self.tensors |= {f"{name}:{key}": tensor for key, tensor in quantized.pack().items()}
            changed = own.to(original.device, original.dtype)
            if torch.equal(changed, original):
                self.unchanged.append(name)
            change, gram = changed.float() - original.float(), None if stats is None else stats.gram
            output = None if stats is None else _share(_square(change, gram), squares[name][1])
            self.errors.append((original.numel(), _share(_square(change, None), squares[name][0]), output))

    def stored(self) -> dict[str, Tensor]:
        """Return the tensors of the unit's artifact."""
        return self.tensors | {f"{name}{DENSE}": tensor for name, tensor in self.scales.dense.items()}


@dataclass
class Solved:
    """The results of one unit by the place of the format in the list asked for: packed units, and errors of the others."""

    packed: dict[int, PackedUnit]
    errors: dict[int, Exception] = field(default_factory=dict)

    def fail(self, place: int, error: Exception) -> None:
        """Replace the result of a format by the error that it met."""
        self.packed.pop(place, None)
        self.errors[place] = error


def solve_unit(
    unit: Unit, method: Method, formats: Sequence[Format], loaded: LoadedModel, stats: Sequence[SharedStats] | None
) -> Solved:
    """Quantize ``unit`` in each of ``formats``; a format that fails leaves the others."""
    solved = Solved({place: PackedUnit(FoldedScales(loaded)) for place in range(len(formats))})
    try:
        originals = _weights(unit, loaded)
        # Before the statistics: a weight that is not finite spoils them, and they are not to blame.
        for name, original in originals.items():
            _check_finite(original, name)
        unreached = _experts_without_tokens(unit, stats)
        for packed in solved.packed.values():
            packed.without_tokens = _counted(unit, unreached) if unreached else None
        groups: list[Group] = [*_by_input(unit, stats, unreached), *(([name], None) for name in unreached)]
        if fuse := getattr(method, "fuse", False):
            # Inputs come in the order in which linears run, and a layer that takes a scale runs before them.
            groups.reverse()
        for names, shared in groups:
            fold = _fold(unit, names, shared, formats) if fuse else None
            going = dict.fromkeys(solved.packed)
            # Rounding has no codebook; such a method chooses one without statistics.
            plain = names[0] in unreached and not any(format.codebook for format in formats)
            solver = RoundToNearest() if plain else method
            weights = [originals[name].float() for name in names]
            own_stats = None if shared is None else replace(shared.stats, foldable=fold is not None)
            solutions, errors = _solve_each(solver, weights, own_stats, formats, list(going))
            for place, error in errors.items():
                solved.fail(place, _named(error, names))
            own = [originals[name] for name in names]
            # Errors are told by all tokens alike, whatever the method weighs.
            of_all_tokens = None if shared is None else shared.of_all_tokens
            squares = squares_of(names, own, of_all_tokens)
            for place, solution in solutions.items():
                solved.packed[place].add(names, own, solution, fold, of_all_tokens, squares)
    except (ValueError, RuntimeError) as error:
        for place in list(solved.packed):
            solved.fail(place, error)
    return solved


def _fold(unit: Unit, names: Sequence[str], shared: SharedStats | None, formats: Iterable[Format]) -> Fold | None:
    """Return where a scale of the input of ``names`` goes; None if it cannot go there.

    Rows of a linear are quantized with the unit, and a single scale for a whole weight does not divide by rows.
    """
    found = None if shared is None else shared.fold
    if found is None or set(found.linears) != set(names):
        return None
    if found.start is None:
        return found
    whole = any(format.group_size == "tensor" for format in formats)
    return found if found.source in unit.linears and not whole else None


def squares_of(
    names: Sequence[str], originals: Sequence[Tensor], stats: LayerStats | None
) -> dict[str, tuple[float, float]]:
    """Return the squares of each of ``originals`` ``[O, I]`` and of its outputs; the latter 0 without ``stats``."""
    weights = [original.float() for original in originals]
    outputs = [0.0 if stats is None else _square(weight, stats.gram) for weight in weights]
    return {name: (_square(weight, None), output) for name, weight, output in zip(names, weights, outputs, strict=True)}


def _square(matrix: Tensor, gram: Tensor | None) -> float:
    """Return the sum of the squares of ``matrix`` ``[O, I]``; with ``gram``, of its outputs."""
    rows = (matrix * matrix).sum(dim=1) if gram is None else output_error(matrix, gram.to(matrix))
    return float(rows.double().sum())


def _share(changed: float, whole: float) -> float:
    # Rounding can make the square of next to nothing negative.
    return max(0.0, changed / whole) if whole > 0 else 0.0


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


def _weights(unit: Unit, loaded: LoadedModel) -> dict[str, Tensor]:
    """Return the weights of the unit's linears; experts, which lie in one tensor, are brought to the device once."""
    with ExitStack() as brought:
        for path in dict.fromkeys(module_of(name) for name in unit.linears if parse(name)):
            brought.enter_context(loaded.onloaded(path))
        return {name: loaded.weight(name) for name in unit.linears}


def _check_finite(weight: Tensor, name: str) -> None:
    """Raise a ValueError with the weight's name if a value is infinite or NaN."""
    if wrong := weight.numel() - int(weight.isfinite().sum()):
        raise ValueError(f"{name}: {wrong} of {weight.numel()} weights are not finite")


def _experts_without_tokens(unit: Unit, stats: Sequence[SharedStats] | None) -> dict[str, None]:
    """Return the slices of experts that no calibration token reached; a ValueError if that is all of the unit's experts."""
    slices = [name for name in unit.linears if parse(name)]
    if stats is None or not slices:
        return {}
    reached = {name for shared in stats for name in shared.linears}
    unreached = dict.fromkeys(name for name in slices if name not in reached)
    if len(unreached) == len(slices):
        raise ValueError(f"{unit.name}: no calibration token reached any of its {_counted(unit, slices)[1]} experts")
    return unreached


def _counted(unit: Unit, slices: Iterable[str]) -> tuple[int, int]:
    """Return how many experts ``slices`` belong to, and how many the unit has."""
    found = [{(own.module, own.index) for own in map(parse, names) if own} for names in (slices, unit.linears)]
    return len(found[0]), len(found[1])


def _by_input(unit: Unit, stats: Sequence[SharedStats] | None, without: Collection[str] = ()) -> list[Group]:
    """Group the unit's linears by the input they share; a ValueError if one, not in ``without``, has no usable statistics."""
    if stats is None:
        return [([name], None) for name in unit.linears]
    groups = [([name for name in shared.linears if name in unit.linears], shared) for shared in stats]
    reached = {name for names, _ in groups for name in names}
    if unreached := [name for name in unit.linears if name not in reached and name not in without]:
        raise ValueError(f"{', '.join(unreached)}: no calibration token reached it")
    for names, shared in groups:
        if names and shared.not_finite:
            raise ValueError(
                f"{', '.join(names)}: {shared.not_finite} of {shared.stats.count} calibration tokens that reach it are "
                "not finite"
            )
    return [(names, shared) for names, shared in groups if names]
