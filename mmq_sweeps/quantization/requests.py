"""Requests: the quantized units that a cell needs, and the keys of their artifacts.

A unit (one layer kind of one block) at full-precision inputs depends on nothing but the model, the method's fields, the
format and the calibration samples, so all cells that select it share it. With ``method.sequential`` a unit is calibrated
behind the quantized units before it in its part, and then also depends on everything that is quantized in that part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.methods.affine import Format
from mmq_sweeps.methods.base import Method
from mmq_sweeps.quantization.targets import METHOD_GROUP_SIZE, Part, Unit, check_format


@dataclass(frozen=True)
class Request:
    """One unit by one method in one format. ``key`` names its artifact.

    ``chain`` holds the units of the part that are calibrated behind each other, by key and in order; it is empty at
    full-precision inputs. ``calibration_pass`` is the same for all requests that one pass over calibration data serves.
    ``statistics`` names the artifact with the unit's layer statistics; it is empty if they cannot be stored.
    """

    unit: Unit
    method: Method
    format: Format
    key: str
    calibration: Mapping[str, Any] | None
    chain: Mapping[str, Unit] = field(default_factory=dict)
    group_size_key: str = METHOD_GROUP_SIZE
    calibration_pass: str = ""
    statistics: str = ""

    @property
    def needs_inputs(self) -> bool:
        """True if the method needs the calibration tokens themselves, not only their statistics."""
        return getattr(self.method, "needs_inputs", False)


def requests(
    cell: Cell, method: Method, parts: Mapping[str, Part], names: Iterable[str] | None = None
) -> list[Request]:
    """List a request for every unit that ``cell`` selects, in the parts ``names`` or in all.

    A ValueError if the method cannot do a format.
    """
    found = []
    sequential = cell.calibration is not None and getattr(method, "sequential", False)
    shareable = cell.calibration is not None and not sequential and not getattr(method, "needs_inputs", False)
    for name in cell.parts if names is None else names:
        selection = cell.parts[name]
        format = _format(method, selection, name)
        behind = selection if sequential else None
        by_key = {cell.unit_key(unit.name, asdict(format), behind): unit for unit in parts[name].select(selection)}
        group_size_key = f"component.{name}.group_size" if "group_size" in selection else METHOD_GROUP_SIZE
        found += [
            Request(
                unit,
                method,
                format,
                key,
                cell.calibration,
                chain=by_key if sequential else {},
                group_size_key=group_size_key,
                calibration_pass=cell.pass_key(name),
                statistics=cell.statistics_key(unit.name) if shareable else "",
            )
            for key, unit in by_key.items()
        ]
    return found


def problems(requests: Iterable[Request]) -> list[str]:
    """List a sentence for every part and width of linears that a format of ``requests`` does not fit."""
    units: dict[tuple[Format, str], list[Unit]] = {}
    for request in requests:
        units.setdefault((request.format, request.group_size_key), []).append(request.unit)
    return [problem for (format, key), found in units.items() for problem in check_format(found, format, key)]


def _format(method: Method, selection: Mapping[str, Any], part: str) -> Format:
    """Return the format of a part. The method checks a part's own group size as if it were the method's."""
    if "group_size" not in selection:
        return method.format(selection["bits"])
    size: Any = selection["group_size"]
    try:
        if any(own.name == "group_size" for own in fields(method)):  # type: ignore[arg-type]
            return replace(method, group_size=size).format(selection["bits"])  # type: ignore[type-var]
        return replace(method.format(selection["bits"]), group_size=size)
    except ValueError as error:
        raise ValueError(f"component.{part}.group_size={size}: {error}") from error
