"""The plan lists the work that the store does not have yet."""

from __future__ import annotations

import pytest

from launch.planning.plan import Plan, make_plan
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.store.record import Record
from tests.launch.cells import cell, grid, record, sweep

BASELINE, FINISHED, FAILED, NEW = cell(16, 16, 16), cell(2, 2, 2), cell(2, 2, 3), cell(2, 2, 4)
RECORDS = {one.id: record(one) for one in (BASELINE, FINISHED)} | {FAILED.id: record(FAILED, "failed")}


def planned(retry: str = "failed", records: dict[str, Record] = RECORDS, **launcher: object) -> Plan:
    cells = [BASELINE, FINISHED, FAILED, NEW]
    return make_plan(sweep(cells, retry=retry), records.get, lambda cell_id: f"sha of {cell_id}", launcher)


@pytest.mark.parametrize(
    ("retry", "pending", "again"),
    [
        ("failed", [FAILED, NEW], [FAILED]),
        ("none", [NEW], []),
        ("all", [BASELINE, FINISHED, FAILED, NEW], [BASELINE, FINISHED, FAILED]),
    ],
)
def test_retry_says_which_recorded_cells_run_again(retry: str, pending: list, again: list) -> None:
    found = planned(retry)
    assert list(found.pending) == pending
    assert found.redo == {one.id: f"sha of {one.id}" for one in again}
    assert found.done == 4 - len(pending)
    assert found.batches == (tuple(one.id for one in pending),)


def test_a_finished_sweep_has_no_groups() -> None:
    found = planned(records={one.id: record(one) for one in (BASELINE, FINISHED, FAILED, NEW)})
    assert found.pending == found.batches == ()


def test_launchers_say_how_cells_are_grouped() -> None:
    cells = grid(2, 3, 4)

    def sizes(**launcher: int) -> list[int]:
        made = make_plan(sweep(cells), {}.get, str, launcher)
        assert [cell_id for group in made.batches for cell_id in group] == [one.id for one in made.pending]
        return [len(group) for group in made.batches]

    assert sizes() == [27]
    assert sizes(cells_per_job=9) == [9, 9, 9]
    assert sizes(cells_per_job=100) == [27]
    assert sizes(jobs=3) == sizes(workers=3) == [9, 9, 9]
    assert sizes(jobs=50) == [1] * 27


@pytest.mark.parametrize("value", [0, -1, True, "many", 1.5])
def test_a_size_of_jobs_that_is_none_is_told(value: object) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.cells_per_job=.*: choose a whole number above 0"):
        planned(cells_per_job=value)
