"""Estimates of time and disk from earlier records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launch.planning.estimate import estimate
from mmq_sweeps.store.store import Store
from tests.launch.cells import PARTS, cell, record

SECONDS = {"calibrate": 3.0, "quantize": 6.0, "evaluate": 10.0, "score": 1.0}


def kept(store: Store, *bits: int, seconds: dict[str, float] = SECONDS, status: str = "done", **more: str) -> None:
    sizes = {part: {"quantized_weights": 800 if width < 16 else 0} for part, width in zip(PARTS, bits, strict=True)}
    store.save(record(cell(*bits, **more), status, seconds=seconds, size={"parts": sizes}), [])


def test_without_records_of_model_and_task_there_is_none(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    assert estimate([cell(2, 2, 2)], store) is None
    kept(store, 2, 2, 2, model="another")
    kept(store, 2, 2, 2, task="another")
    kept(store, 2, 2, 3, status="failed")
    assert estimate([cell(2, 2, 2)], store) is None


def test_cells_are_evaluated_each_and_parts_quantized_once(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    kept(store, 2, 2, 2)
    folder = sum(path.stat().st_size for path in store.record_path(cell(2, 2, 2).id).parent.iterdir())
    found = estimate([cell(4, 4, 4), cell(4, 4, 8), cell(4, 16, 16)], store)
    assert found is not None
    # Three cells of 11 s; vision and connector at 4, language at 4 and 8, each a third of 9 s.
    assert found.seconds == pytest.approx(3 * 11 + 4 * 3)
    assert found.size_bytes == 3 * folder + (3 * 4 + 8) * 800 // 8
    assert (found.records, found.cells, found.methods_without) == (1, 3, ())


def test_the_median_of_records_counts(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    for bits, evaluating in ((2, 1.0), (3, 2.0), (4, 600.0)):
        kept(store, bits, bits, bits, seconds={"evaluate": evaluating})
    found = estimate([cell(16, 16, 16)], store)
    assert found is not None
    assert found.seconds == 2.0


def test_what_has_no_record_is_told(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    kept(store, 2, 2, 2)
    found = estimate([cell(3, 3, 3, method="gptq"), cell(2, 2, 3, model="another")], store)
    assert found is not None
    assert (found.seconds, found.cells, found.methods_without) == (11.0, 1, ("gptq",))


def test_a_mixed_part_is_charged_its_mean_bits_and_its_own_method(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    kept(store, 2, 2, 2)
    folder = sum(path.stat().st_size for path in store.record_path(cell(2, 2, 2).id).parent.iterdir())
    one = cell(16, 16, 4)
    whole = {"blocks": ["front", "middle", "end"]}
    rules = [{"bits": 4, "layers": ["attention"], **whole}, {"bits": 2, "layers": ["mlp"], **whole}]
    found = estimate([replace(one, parts={PARTS[2]: {"rules": rules}})], store)
    assert found is not None
    assert (found.seconds, found.size_bytes) == (pytest.approx(11 + 3), folder + 3 * 800 // 8)
    rules = [{**rule, "method": {"_target_": "gptq"}} for rule in rules]
    found = estimate([replace(one, parts={PARTS[2]: {"rules": rules}})], store)
    assert found is not None
    assert found.methods_without == ("gptq",)
