"""Items are read once, and scores of all cells stand in the same order of items."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.audit import answers
from analysis.audit.checks import audit
from analysis.cells.items import Book, Column, stacked
from analysis.load import load
from analysis.measures.frontier import frontiers
from analysis.measures.sensitivity import sensitivities
from mmq_sweeps.store.store import Store
from tests.analysis.grids import stored

CELLS = {
    "none": [({}, 16.0, 1.0)],
    **{
        method: [({"vision": v, "language": w}, float(v + w), 1 - 1 / v - 1 / w) for v, w in product((3, 4), repeat=2)]
        for method in ("rtn", "gptq")
    },
}


def test_frontiers_sensitivity_and_audit_read_each_cell_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, CELLS)
    read: Counter[str] = Counter()
    items = Store.items

    def counted(self: Store, cell_id: str) -> list[dict[str, Any]]:
        read[cell_id] += 1
        return items(self, cell_id)

    monkeypatch.setattr(Store, "items", counted)
    cells = load([str(tmp_path)])
    answers.wanted(cells)
    by_method, overall = frontiers(cells, by_method=True), frontiers(cells)
    assert all("probability" in one.cells for one in (*by_method, *overall))
    assert "low" in sensitivities(cells)[0].alone or sensitivities(cells)[0].alone.empty
    audit(cells)
    assert set(read.values()) == {1}
    assert len(read) == 9
    # Without being told before, an audit reads them again, and finds the same.
    again = load([str(tmp_path)])
    frontiers(again)
    assert audit(again) == audit(cells)
    assert max(read.values()) == 3


def test_scores_beyond_the_bound_are_read_again() -> None:
    reads = []
    items = [{"id": "a", "scores": {"cider": 1.0}}, {"id": "b", "scores": {"cider": 2.0, "meteor": 0.5}}]

    def read() -> list[dict[str, Any]]:
        reads.append(1)
        return items

    book = Book()
    assert book.get(("", "1"), read, book.scores)["cider"].values.tolist() == [1.0, 2.0]
    assert book.get(("", "1"), read, book.scores)["meteor"].ids == ("b",)
    assert len(reads) == 1
    book = Book(_left=30)
    for _ in range(2):
        assert book.get(("", "1"), read, book.scores)["meteor"].values.tolist() == [0.5]
    assert len(reads) == 2
    book = Book(_left=8)
    for _ in range(2):
        book.get(("", "1"), read, book.scores)
    assert len(reads) == 4
    # Small entries stay in the cache.
    assert book.get(("", "1"), read, len) == 2
    assert book.get(("", "1"), read, len) == 2
    assert len(reads) == 5


def test_scores_are_in_the_first_cell_s_order_of_items() -> None:
    one, other = Column(("a", "b"), np.array([1.0, 2.0])), Column(("b", "a"), np.array([4.0, 3.0]))
    assert stacked([one, other]).tolist() == [[1.0, 2.0], [3.0, 4.0]]  # type: ignore[union-attr]
    for unlike in (None, Column(("a", "c"), one.values), Column(("a",), one.values[:1])):
        assert stacked([one, unlike]) is None
        assert stacked([unlike, one]) is None
    assert stacked([]) is None
