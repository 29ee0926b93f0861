from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.load import load, stores
from mmq_sweeps.store.store import Store
from tests.analysis.grids import record, saved, stored

CELLS = {"none": [({}, 16.0, 1.0)], "gptq": [({"vision": 3}, 12.0, 0.9), ({"vision": 2}, 11.0, 0.4)]}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Collect the cells whose records each load reads."""
    real, asked = stores._read, []

    def read(store: Store, stamps: Mapping[str, str]) -> Any:
        asked.append(sorted(stamps))
        return real(store, stamps)

    monkeypatch.setattr(stores, "_read", read)
    return asked


def test_only_what_changed_is_read_again(tmp_path: Path, reads: list[list[str]]) -> None:
    stored(tmp_path, CELLS)
    first = load([str(tmp_path)]).frame
    again = load([str(tmp_path)]).frame
    pd.testing.assert_frame_equal(again, first, check_dtype=False)
    saved(Store.open(tmp_path), record("gptq", {"vision": 2}, 11.0, 0.5), np.full(40, 0.5))
    saved(Store.open(tmp_path), record("rtn", {"vision": 2}, 11.0, 0.3), np.full(40, 0.3))
    shutil.rmtree(tmp_path / "cells" / "gptq-vision3")
    found = load([str(tmp_path)]).frame.set_index("id")["metric.cider"]
    assert reads == [["gptq-vision2", "gptq-vision3", "none"], [], ["gptq-vision2", "rtn-vision2"]]
    assert found.to_dict() == pytest.approx({"none": 1.0, "gptq-vision2": 0.5, "rtn-vision2": 0.3})


def test_the_same_record_edited_in_place_is_read_again(tmp_path: Path) -> None:
    stored(tmp_path, CELLS)
    load([str(tmp_path)])
    path = tmp_path / "cells" / "gptq-vision3" / "record.json"
    path.write_text(path.read_text().replace("gptq", "awqq"))
    os.utime(path, ns=(1, 1))
    cells = load([str(tmp_path)])
    assert len(cells.frame) == 2
    assert "gptq-vision3/record.json does not match its sha256; run the sweep again" in cells.notes[0]
    assert path.is_file(), "reading moves nothing"


def test_a_cache_that_is_broken_is_made_anew(tmp_path: Path, cache_of_its_own: Path) -> None:
    stored(tmp_path, CELLS)
    load([str(tmp_path)])
    (kept,) = cache_of_its_own.rglob("*.parquet")
    kept.write_bytes(b"PAR1")
    assert len(load([str(tmp_path)]).frame) == 3
    assert kept.stat().st_size > 4


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path / "runs", CELLS)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cells = load([str(tmp_path / "runs")])
    assert len(cells.frame) == 3
    assert cells.notes[0].startswith("the table is read anew each time: ")


def test_a_published_table_that_changes_is_read_again(published: Path, tmp_path: Path) -> None:
    table = pd.read_csv(published / "gptq_captioning.csv")
    table.to_csv(tmp_path / "gptq.csv", index=False)
    first = load([f"published:{tmp_path}"])
    second = load([f"published:{tmp_path}"])
    pd.testing.assert_frame_equal(second.frame, first.frame, check_dtype=False)
    assert second.notes == first.notes
    table.assign(cider=table["cider"] + 1).to_csv(tmp_path / "gptq.csv", index=False)
    found = load([f"published:{tmp_path}"]).frame
    assert found["metric.cider"].tolist() == pytest.approx((table["cider"] + 1).tolist())


def test_a_store_that_is_being_written_is_read_whole_and_left_alone(tmp_path: Path) -> None:
    stored(tmp_path, CELLS)
    stop = threading.Event()

    def sweep() -> None:
        """Write new cells, and measure a known cell again and again: its items are written before its record."""
        for number in itertools.count(1):
            if stop.is_set():
                return
            saved(Store.open(tmp_path), record("gptq", {"vision": 3}, 12.0, number), np.full(40, float(number)))
            saved(Store.open(tmp_path), record("rtn", {"vision": number + 2}, 10.0, 0.5), np.full(40, 0.5))

    counts = []
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(sweep)
        try:
            for _ in range(15):
                cells = load([str(tmp_path)])
                assert cells.notes == ()
                assert {"none", "gptq-vision3", "gptq-vision2"} <= set(cells.frame["id"])
                assert cells.frame["metric.cider"].notna().all()
                counts.append(len(cells.frame))
        finally:
            stop.set()
        writing.result()
    assert counts == sorted(counts)
    assert not (tmp_path / "corrupt").exists()
    assert len(load([str(tmp_path)]).frame) == len(list((tmp_path / "cells").iterdir()))
