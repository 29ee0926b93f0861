"""Sizes in a space are those of measured cells, and a point is the cell of its file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from mmq_sweeps.config.assignment import Source
from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.methods.base import Method
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.quantize import quantize_units
from mmq_sweeps.quantization.requests import requests
from mmq_sweeps.quantization.size import measure
from mmq_sweeps.quantization.stored_units import load
from mmq_sweeps.quantization.targets import Part
from mmq_sweeps.search.sizing import Candidate, space_of
from mmq_sweeps.search.space import Budget, Option, Point, Space
from mmq_sweeps.store.store import Store
from tests.search.spaces import space_of as made

PARTS = ("vision", "connector", "language")
Composed = Callable[..., DictConfig]


def method(name: str, **fields: object) -> tuple[dict, Method]:
    node = {"name": name, **fields}
    classes = {"rtn": "rtn.RoundToNearest", "awq": "awq.AWQ"}
    return node, build("method", {"_target_": f"mmq_sweeps.methods.{classes[name]}", **fields})


def candidates() -> list[Candidate]:
    found = [Candidate(Option(16), None)]
    for name, fields in (("rtn", {"group_size": "channel"}), ("rtn", {"group_size": 16, "symmetric": True})):
        node, made_method = method(name, **fields)
        found += [Candidate(Option(bits, node, label=f"{name} {bits}"), made_method) for bits in (2, 3, 8)]
    return found


@pytest.fixture
def space(loaded: LoadedModel, parts: dict[str, Part]) -> Callable[..., Space]:
    return lambda granularity, names=PARTS: space_of(
        "tiny_blip2", loaded.model, parts, names, candidates(), granularity
    )


@pytest.fixture
def cell(composed: Composed, tmp_path: Path, parts: dict[str, Part]) -> Callable[[Space, Point], Cell]:
    def planned(space: Space, point: Point) -> Cell:
        file = tmp_path / "point.json"
        file.write_text(json.dumps(space.content(point)))
        config = composed(f"assignment={file}", "method=rtn", "tracker=none")
        source = Source(structures=lambda _: {name: part.structure for name, part in parts.items()})
        return plan([config], source).cells[-1]

    return planned


def some_points(space: Space) -> Iterator[Point]:
    yield from space.uniform()
    yield tuple(number % len(axis.options) for number, axis in enumerate(space.axes))
    yield tuple((3 * number + 1) % len(axis.options) for number, axis in enumerate(space.axes))


@pytest.mark.parametrize("granularity", ["part", "kind", "group", "unit"])
def test_a_point_weighs_what_its_measured_cell_weighs(
    granularity: str,
    space: Callable[..., Space],
    cell: Callable[[Space, Point], Cell],
    loaded: LoadedModel,
    parts: dict[str, Part],
    tmp_path: Path,
) -> None:
    found = space(granularity)
    store = Store.open(tmp_path / "runs")
    for point in [*some_points(found)][-2:]:
        needed = requests(cell(found, point), build, parts)
        quantize_units(needed, loaded, parts, lambda _: iter(()), store)
        weights, missing = load(needed, store)
        assert not missing
        size = measure(loaded.model, parts.values(), weights.weights)["total"]
        assert found.bpw(point) == pytest.approx(size["bpw_exact"], rel=1e-12)
        assert found.bits(point) // 8 == size["size_bytes"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scale_of_a_tensor_weighs_what_the_model_stores(parts: dict[str, Part], dtype: str) -> None:
    one = build("method", {"_target_": "mmq_sweeps.methods.rtn.RoundToNearest", "group_size": "tensor"})
    unit = parts["language"].units[0]
    expected = sum(replace(one.format(4), dtype=dtype).stored_bits(shape) for shape in unit.linears.values())
    assert Candidate(Option(4), one, dtype).stored_bits(unit) == expected
    assert (dtype == "float32") == (Candidate(Option(4), one).stored_bits(unit) == expected)


def test_embeddings_are_an_axis_of_their_own_at_every_granularity(
    space: Callable[..., Space], cell: Callable[[Space, Point], Cell]
) -> None:
    for granularity in ("part", "unit"):
        found = space(granularity, ("language", "embeddings"))
        assert found.axes[-1].name == "embeddings"
        point = tuple(1 for _ in found.axes)
        assert cell(found, point).parts["embeddings"]["bits"] == 2


def test_one_assignment_is_one_cell_whatever_the_granularity(
    space: Callable[..., Space], cell: Callable[[Space, Point], Cell]
) -> None:
    ids = {
        cell(own, tuple(axis.options.index(axis.options[2]) for axis in own.axes)).id
        for own in map(space, ("part", "kind", "group", "unit"))
    }
    assert len(ids) == 1


def test_points_are_cells_of_their_own(space: Callable[..., Space], cell: Callable[[Space, Point], Cell]) -> None:
    found = space("kind")
    points = list(dict.fromkeys(some_points(found)))
    assert len({cell(found, point).id for point in points}) == len(points)


def test_full_precision_is_the_baseline(space: Callable[..., Space], cell: Callable[[Space, Point], Cell]) -> None:
    found = space("part")
    point = found.best_options
    assert all(axis.options[place].full for axis, place in zip(found.axes, point, strict=True))
    assert cell(found, point).parts == {}
    assert found.bits(point) == found.full_bits == 16 * found.parameters


def test_awq_weighs_its_input_scales(loaded: LoadedModel, parts: dict[str, Part]) -> None:
    node, own = method("awq")
    plain = method("rtn", group_size=own.group_size)[1]  # type: ignore[attr-defined]
    sizes = [
        space_of("tiny_blip2", loaded.model, parts, ["language"], [Candidate(Option(4, node), one)])
        .axes[0]
        .stored_bits[0]
        for one in (own, plain)
    ]
    columns = sum(shape[1] for unit in parts["language"].units for shape in unit.linears.values())
    assert sizes[0] - sizes[1] == 16 * columns


def test_neighbours_differ_by_a_step_or_by_a_step_up_and_one_down() -> None:
    space = made([100, 200, 300])
    around = space.neighbours((1, 2, 3))
    assert (0, 2, 3) in around
    assert (2, 1, 3) in around
    assert (1, 2, 3) not in around
    for point in around:
        steps = [new - old for new, old in zip(point, (1, 2, 3), strict=True)]
        assert sorted(step for step in steps if step) in ([-1], [1], [-1, 1])


def test_uniform_points_are_sorted_and_alike() -> None:
    found = made([100, 200]).uniform()
    assert found == [(place, place) for place in range(7)]


@pytest.mark.parametrize(
    ("value", "told"), [(0.5, "the lowest options of all axes weigh"), (16, "nothing need be quantized")]
)
def test_a_budget_out_of_reach_is_told(value: float, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Budget.of_bpw(value, made([10_000], rest=100))


@given(st.lists(st.integers(10**3, 10**7), min_size=1, max_size=4), st.integers(10, 100))
def test_the_least_budget_that_is_named_is_one(weights: list[int], rest: int) -> None:
    space = made(weights, rest=rest)
    for of in (Budget.of_bpw, Budget.of_gb):
        with pytest.raises(ConfigError) as refused:
            of(1e-12, space)
        least = float(str(refused.value).partition("; choose ")[2].split()[0])
        assert of(least, space).bits >= space.least_bits


def test_budgets_in_gigabytes_are_the_same_sizes() -> None:
    space = made([10**9, 10**9])
    bits = space.bits((2, 2))
    assert Budget.of_gb(bits / 8e9, space).bits == Budget.of_bpw(bits / space.parameters, space).bits == bits


def test_unknown_granularity_and_part_are_told(loaded: LoadedModel, parts: dict[str, Part]) -> None:
    with pytest.raises(ConfigError, match=r"granularity=blocks: .*Choose part, kind, group or unit"):
        space_of("tiny_blip2", loaded.model, parts, PARTS, candidates(), "blocks")
    with pytest.raises(ConfigError, match=r"Unknown part 'visoin'\. Did you mean vision"):
        space_of("tiny_blip2", loaded.model, parts, ["visoin"], candidates())
