"""A group size that does not fit is reported once for each part and width, with the override that helps."""

from __future__ import annotations

import pytest

from mmq_sweeps.methods.formats import Format
from mmq_sweeps.quantization.requests import Request, problems
from mmq_sweeps.quantization.targets import METHOD_GROUP_SIZE, Unit, check_format


def units(part: str, blocks: int, **widths: int) -> list[Unit]:
    """Make a unit a block; each has a linear ``[64, width]`` for each of ``widths``."""
    return [
        Unit(part, block, "front", "mlp", {f"{part}.{block}.{name}": (64, width) for name, width in widths.items()})
        for block in range(blocks)
    ]


def test_many_linears_of_one_width_are_one_line() -> None:
    (told,) = check_format(units("vision", 80, fc1=1280, fc2=3420), Format(4, 128))
    assert told == (
        "method.group_size: group_size=128 does not divide 3420 input columns; use channel or tensor (80 linears of "
        "vision, such as vision.0.fc2); for vision alone: component.vision.group_size=channel"
    )


@pytest.mark.parametrize(("size", "width"), [(48, 3420), (128, 4304), (48, 4304), (7, 64)])
def test_each_width_names_the_override(size: int, width: int) -> None:
    (told,) = check_format(units("vision", 27, fc2=width), Format(4, size))
    assert f"group_size={size} does not divide {width} input columns" in told
    assert "component.vision.group_size=channel" in told


def test_two_widths_of_two_parts_are_a_line_each() -> None:
    wanted = [*units("vision", 3, fc1=1152, fc2=4304), *units("connector", 2, out=4304), *units("language", 2, fc1=512)]
    told = check_format(wanted, Format(4, 512))
    assert [line.partition(" (")[2].partition(",")[0] for line in told] == [
        "3 linears of vision",
        "3 linears of vision",
        "2 linears of connector",
    ]


def test_a_part_s_own_group_size_is_told_at_its_own_key() -> None:
    (told,) = check_format(units("vision", 5, fc2=3420), Format(4, 48), "component.vision.group_size")
    assert told.startswith("component.vision.group_size: group_size=48 does not divide 3420 input columns")
    assert "alone" not in told


def test_bit_widths_do_not_multiply_the_lines() -> None:
    requests = [
        Request(unit, object(), Format(bits, 48), f"{unit.name} {bits}", None)  # type: ignore[arg-type]
        for unit in units("vision", 9, fc2=3420)
        for bits in (3, 4)
    ]
    assert METHOD_GROUP_SIZE == "method.group_size"
    assert len(set(problems(requests))) == 1
