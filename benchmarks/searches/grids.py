"""Grids of all cells, each run once and read back, and comparisons of a cell with a grid's best."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.searches.subjects import POOL_SEED, WIDTHS, Subject
from benchmarks.sections import said
from mmq_sweeps.metrics.intervals import paired_difference
from mmq_sweeps.metrics.result import MetricResult
from mmq_sweeps.search.space import Budget
from mmq_sweeps.store.store import Store

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Grid:
    """The cells of a grid by bits of its parts: results, sizes, predictions; and the processor seconds that it took."""

    results: dict[tuple[int, ...], MetricResult]
    bits: dict[tuple[int, ...], int]
    predictions: dict[tuple[int, ...], dict[str, str]]
    seconds: float

    def best(self, bits: int) -> tuple[int, ...]:
        """Return the cell of best value within ``bits``."""
        return max((key for key in self.results if self.bits[key] <= bits), key=lambda key: self.results[key].value)


def grid_of(subject: Subject, folder: Path, pool: bool) -> Grid:
    """Run a grid unless ``folder`` has it, and read it."""
    store = folder / f"{subject.name}{'_pool' if pool else ''}"
    timed = store.with_suffix(".time")
    if not timed.is_file():
        extra = (
            [f"task.split=calibration task.data.seed={POOL_SEED} task.limit={subject.pool}".split()] if pool else [[]]
        )
        said(f"{store.name}: {len(WIDTHS) ** len(subject.parts)} cells")
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "mmq_sweeps", "-m", "method=gptq", "tracker=none", f"store.dir={store}",
             *subject.overrides, *subject.axes, *extra[0]],
            cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        after = os.times()
        timed.write_text(
            f"{after.children_user - before.children_user} {after.children_system - before.children_system}"
        )
    return _read(store, subject, sum(map(float, timed.read_text().split()[:2])))


def _read(folder: Path, subject: Subject, seconds: float) -> Grid:
    from mmq_sweeps.reporting.compare import results_of

    store = Store.reading(folder)
    found = Grid({}, {}, {}, seconds)
    for record in store.records():
        key = tuple(record.cell["parts"].get(part, {}).get("bits", 16) for part in subject.parts)
        items, total = store.items(record.id), record.size["total"]
        found.results[key] = results_of(record, items)[subject.metric]
        found.bits[key] = round(total["bpw_exact"] * total["parameters"])
        found.predictions[key] = {item["id"]: item["prediction"] for item in items}
    assert len(found.results) == len(WIDTHS) ** len(subject.parts), f"{folder} has {len(found.results)} cells"
    return found


def compared(grid: Grid, key: tuple[int, ...], budget: Budget) -> dict[str, Any]:
    """Compare a cell with the best of the grid within a budget; ``within`` is False if it is significantly worse."""
    best = grid.best(budget.bits)
    difference = paired_difference(grid.results[best], grid.results[key])
    return {
        "budget": budget.text, "found": key, "best": best, "value": grid.results[key].value,
        "best_value": grid.results[best].value, "difference": difference.value, "interval": difference.interval,
        "within": difference.interval[1] >= 0,
    }  # fmt: skip
