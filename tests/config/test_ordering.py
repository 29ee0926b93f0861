"""The order of cells: cells that share work run together, and jobs are cut where little is shared."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmq_sweeps.config.ordering import common, in_order, packed
from tests.launch.cells import cell, grid


def runs(values: list) -> int:
    """Count the runs of equal values."""
    return sum(one != other for one, other in zip(values, [None, *values], strict=False))


def test_every_shared_thing_is_worked_through_once() -> None:
    cells = grid(2, 4, 16) + grid(2, 4, 16, method="gptq") + grid(2, 16, model="two") + grid(3, 16, task="questions")
    random.Random(0).shuffle(cells)
    cells_by_id = {one.id: one for one in cells}
    placed = in_order(cells_by_id.values())
    assert sorted(one.id for one in placed) == sorted(cells_by_id)
    for depth in range(1, 6):
        paths = [one.path[:depth] for one in placed]
        assert runs(paths) == len(set(paths)), f"depth {depth}"


def test_the_baseline_of_each_model_and_task_is_first() -> None:
    cells = grid(2, 16)[:-1] + grid(3, 16, model="two")[:-1] + [cell(16, 16, 16, model="two"), cell(16, 16, 16)]
    placed = in_order(cells)
    firsts = {one.path[:2]: one.cell for one in reversed(placed)}
    assert len(firsts) == 2
    assert not any(one.parts for one in firsts.values())


def test_metrics_make_no_difference_to_what_is_shared() -> None:
    one, other = cell(2, 2, 2), cell(2, 2, 3)
    other.task["metrics"] = ["meteor"]
    assert common(*in_order([one, other])) == 4
    assert common(*in_order([cell(2, 2, 2), cell(3, 2, 2)])) == 2
    assert common(*in_order([cell(2, 2, 2), cell(2, 2, 2, model="two")])) == 0


def test_jobs_are_cut_between_cells_that_share_little() -> None:
    placed = in_order(grid(2, 3, 4))
    for jobs, most in ((3, 9), (3, 12)):
        assert [{one.cell.parts["vision"]["bits"] for one in group} for group in packed(placed, jobs, most)] == [
            {2}, {3}, {4},
        ]  # fmt: skip
    nine = packed(placed, 9, 3)
    assert all(len({one.path[:4] for one in group}) == 1 for group in nine)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([2, 3, 16])] * 3), min_size=1, unique=True), st.integers(1, 40))
def test_packing_keeps_order_and_limits(bits: list[tuple[int, int, int]], most: int) -> None:
    placed = in_order([cell(*one) for one in bits])
    jobs = math.ceil(len(placed) / most)
    groups = packed(placed, jobs, most)
    assert [one for group in groups for one in group] == placed
    assert len(groups) == jobs
    assert all(1 <= len(group) <= most for group in groups)


@pytest.mark.parametrize("jobs", [1, 2, 7, 27])
def test_a_number_of_jobs_is_kept(jobs: int) -> None:
    groups = packed(in_order(grid(2, 3, 4)), jobs, math.ceil(1.25 * 27 / jobs))
    assert len(groups) == jobs
    assert sum(map(len, groups)) == 27
