"""Requests: the quantized units that a cell needs, and the keys of their artifacts.

A unit (one layer kind of one block) at full-precision inputs depends on nothing but the model, the method's fields, the
format and the calibration samples, so all cells that select it share it. With ``method.sequential`` a unit is calibrated
behind the quantized units before it in its part, and then also depends on everything that is quantized in that part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mmq_sweeps.grouping import grouped
from mmq_sweeps.identity.cell import Cell, MethodRule
from mmq_sweeps.methods.base import Method
from mmq_sweeps.methods.formats import Format
from mmq_sweeps.quantization.targets import METHOD_GROUP_SIZE, Part, Unit, check_format, inputs_problem

# Makes a method of its key in the configuration and its node.
Build = Callable[[str, Mapping[str, Any]], Method]


@dataclass(frozen=True)
class Request:
    """One unit by one method in one format. ``key`` names its artifact.

    ``chain`` holds the requests of the part whose units are in place when this one is calibrated, by key and in order, itself
    among them; it is empty at full-precision inputs. ``calibration_pass`` is the same for all requests that one pass over
    calibration data serves. ``statistics`` names the artifact with the unit's layer statistics, ``kinds`` that with
    vision and text tokens apart, which a method with a ``vision_weight`` needs as well; empty if they cannot be stored.
    """

    unit: Unit
    method: Method
    format: Format
    key: str
    calibration: Mapping[str, Any] | None
    chain: Mapping[str, Request] = field(default_factory=dict)
    group_size_key: str = METHOD_GROUP_SIZE
    calibration_pass: str = ""
    statistics: str = ""
    kinds: str = ""

    @property
    def vision_weight(self) -> float | None:
        """The share of vision tokens in the method's objective; None for all tokens alike."""
        return getattr(self.method, "vision_weight", None)

    @property
    def sequential(self) -> bool:
        """True if the unit is calibrated behind the quantized ones before it."""
        return self.calibration is not None and getattr(self.method, "sequential", False)

    @property
    def needs_inputs(self) -> bool:
        """True if the method needs the calibration tokens themselves, not only their statistics."""
        return getattr(self.method, "needs_inputs", False)


def requests(cell: Cell, build: Build, parts: Mapping[str, Part], names: Iterable[str] | None = None) -> list[Request]:
    """List a request for every unit that ``cell`` selects, in the parts ``names`` or in all.

    Args:
        build: makes a method of its key in the configuration and its node.

    Raises:
        ValueError: a method cannot do a format, or a part's selection holds no linear.
    """
    found = []
    for name in cell.parts if names is None else names:
        parts[name].select(cell.parts[name])
        own = [request for rule in cell.rules(name) for request in _of_rule(cell, rule, build, parts[name])]
        # In the order of the model, which rules need not have.
        place = {unit.name: index for index, unit in enumerate(parts[name].units)}
        own.sort(key=lambda request: place[request.unit.name])
        chain = {request.key: request for request in own}
        found += [replace(request, chain=chain) if request.sequential else request for request in own]
    return found


def _of_rule(cell: Cell, rule: MethodRule, build: Build, part: Part) -> Iterator[Request]:
    """Yield a request for every unit of ``part`` that ``rule`` selects."""
    key = f"component.{part.name}.group_size" if part.name in cell.own_sizes else METHOD_GROUP_SIZE
    try:
        method = build(rule.key, cell.node(rule.method))
        format = _format(method, rule.bits, part.name)
        if rule.group_size is not None:
            format = replace(format, group_size=rule.group_size)
        format = replace(format, dtype=cell.model["dtype"])
    except ValueError as error:
        if key == METHOD_GROUP_SIZE:
            raise
        raise ValueError(
            f"{key}={rule.method.get('group_size', rule.group_size)}: {str(error).removeprefix('method: ')}"
        ) from error
    sequential = rule.calibrated and getattr(method, "sequential", False)
    shareable = rule.calibrated and not sequential and not getattr(method, "needs_inputs", False)
    for unit in part.chosen(rule.rule):
        # The model's configuration, which keys hold, says where blocks are, but not where embeddings and head are.
        name = " ".join([unit.name, *unit.linears]) if part.at_an_end else unit.name
        yield Request(
            unit,
            method,
            format,
            cell.unit_key(name, rule, format.fields(), part.name if sequential else None),
            cell.calibration if rule.calibrated else None,
            group_size_key=key,
            calibration_pass=cell.pass_key(part.name, rule.calibrated),
            statistics=cell.statistics_key(name) if shareable else "",
            kinds=cell.kinds_key(name, part.name) if shareable and rule.vision_tokens else "",
        )


def _format(method: Method, bits: int, part: str) -> Format:
    """Return the format of ``method`` at ``bits``; a ValueError names the ``part`` whose width it does not have."""
    try:
        return method.format(bits)
    except ValueError as error:
        raise ValueError(f"component.{part}: {error}") from error


def problems(requests: Iterable[Request]) -> list[str]:
    """List a sentence for every part and width of linears that a format of ``requests`` does not fit."""
    alike = grouped(requests, lambda request: (request.format, request.group_size_key))
    return [
        problem
        for (format, key), own in alike.items()
        for problem in check_format((request.unit for request in own), format, key)
    ]


def calibration_problems(requests: Iterable[Request]) -> list[str]:
    """List a sentence for every method that needs statistics where there are none, or takes no calibration data for them."""
    found = []
    for request in requests:
        if not request.method.needs_statistics:
            continue
        name = getattr(request.method, "known_as", type(request.method).__name__)
        if (problem := inputs_problem(request.unit.part, name)) is not None:
            found.append(problem)
        elif request.calibration is None:
            found.append(f"method={name}: needs statistics, so its yaml must say calibration: ${{calibration}}")
    return list(dict.fromkeys(found))
