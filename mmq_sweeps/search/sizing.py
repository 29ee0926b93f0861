"""Build the space of a search from a model's parts: the units of each axis, and the size of every option."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from mmq_sweeps.errors import ConfigError, one_of, unknown
from mmq_sweeps.grouping import grouped
from mmq_sweeps.identity.assignment import BLOCK_GROUPS, FULL_PRECISION_BITS, LAYER_KINDS
from mmq_sweeps.methods.base import Method
from mmq_sweeps.methods.formats import Format
from mmq_sweeps.quantization.size import StoredLinear, measure_stored
from mmq_sweeps.quantization.targets import Part, Unit, tied_problems
from mmq_sweeps.search.space import GRANULARITIES, Axis, Option, Space


@dataclass(frozen=True)
class Candidate:
    """An option with its method built; ``method`` is None at full precision. ``dtype`` is that of the model."""

    option: Option
    method: Method | None
    dtype: str = "float32"

    def format(self) -> Format | None:
        """Return the format of a weight; None at full precision."""
        if self.method is None:
            return None
        format = replace(self.method.format(self.option.bits), dtype=self.dtype)
        return format if self.option.group_size is None else replace(format, group_size=self.option.group_size)

    def stored_bits(self, unit: Unit) -> int:
        """Return the exact bits of the unit's weights; a ValueError if groups do not divide its columns."""
        format = self.format()
        if format is None:
            return FULL_PRECISION_BITS * sum(rows * columns for rows, columns in unit.linears.values())
        scaled = getattr(self.method, "input_scaled", False)
        return sum(StoredLinear(format, shape, scaled).bits for shape in unit.linears.values())


def space_of(
    name: str,
    model: nn.Module,
    parts: Mapping[str, Part],
    searched: Sequence[str],
    candidates: Sequence[Candidate] | Mapping[str, Sequence[Candidate]],
    granularity: str = "part",
) -> Space:
    """Return the space over the parts ``searched`` of ``model``, which may lie on the meta device.

    ``candidates`` are for all parts, or by part. Embeddings and head are one axis each at every granularity. An option whose
    groups do not divide an axis's columns is left out there.

    Raises ConfigError for an unknown granularity or part, for tied parts, and for an axis that no option fits.
    """
    if granularity not in GRANULARITIES:
        raise ConfigError(
            f"hydra.sweeper.granularity={granularity}: {unknown('granularity', granularity, GRANULARITIES)}"
        )
    if wrong := [part for part in searched if part not in parts]:
        raise ConfigError(f"component={part}: {unknown('part', part, parts)}" for part in wrong)
    if found := tied_problems(parts, searched, name):
        raise ConfigError(found)
    axes = tuple(
        axis
        for part in searched
        for own in [candidates[part] if isinstance(candidates, Mapping) else candidates]
        for axis in _axes(parts[part], own, granularity)
    )
    size = measure_stored(model, parts.values(), {})["total"]
    changed = FULL_PRECISION_BITS * sum(axis.weights for axis in axes)
    return Space(name, granularity, axes, FULL_PRECISION_BITS * size["parameters"] - changed, size["parameters"])


def _axes(part: Part, candidates: Sequence[Candidate], granularity: str) -> Iterable[Axis]:
    units = [unit for unit in part.units if unit.linears]
    part.select({"bits": FULL_PRECISION_BITS})
    name = NAMES["part" if part.at_an_end else granularity]
    for axis, own in grouped(units, name).items():
        where = {} if part.at_an_end else _where(own[0], units, granularity)
        yield _axis(axis, part.name, own, candidates, where)


# How an axis is named after one of its units.
NAMES: Mapping[str, Callable[[Unit], str]] = {
    "part": lambda unit: unit.part,
    "kind": lambda unit: f"{unit.part}.{unit.kind}",
    "group": lambda unit: f"{unit.part}.{unit.group}.{unit.kind}",
    "unit": lambda unit: unit.name,
}


def _where(unit: Unit, units: Sequence[Unit], granularity: str) -> dict[str, list[str]]:
    """Return the rule that selects the axis of ``unit``.

    Kinds and block groups that a part has no units of follow others, as they do in a cell's id, so that an assignment has
    one id at every granularity.
    """
    if granularity not in ("kind", "group"):
        return {}
    kinds = dict.fromkeys(own.kind for own in units)
    layers = [kind for kind in LAYER_KINDS if kind == unit.kind or kind not in kinds]
    if granularity == "kind":
        return {"layers": layers}
    held = [group for group in BLOCK_GROUPS if any(own.group == group and own.kind == unit.kind for own in units)]
    later = {
        group: next((own for own in held if BLOCK_GROUPS.index(own) >= place), held[-1])
        for place, group in enumerate(BLOCK_GROUPS)
    }
    return {"blocks": [group for group in BLOCK_GROUPS if later[group] == unit.group], "layers": layers}


def _axis(
    name: str, part: str, units: Sequence[Unit], candidates: Sequence[Candidate], where: Mapping[str, Sequence[str]]
) -> Axis:
    options, sizes, problems = [], [], []
    for candidate in candidates:
        try:
            sizes.append(sum(candidate.stored_bits(unit) for unit in units))
            options.append(candidate.option)
        except ValueError as error:
            problems.append(str(error))
    if not options:
        raise ConfigError(f"component.{part}: no option of the search fits {name}: {one_of(dict.fromkeys(problems))}")
    weights = sum(rows * columns for unit in units for rows, columns in unit.linears.values())
    return Axis(name, part, tuple(unit.name for unit in units), weights, tuple(options), tuple(sizes), where)
