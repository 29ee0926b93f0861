from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from mmq_sweeps.store import eviction
from mmq_sweeps.store.eviction import KINDS, artifacts
from mmq_sweeps.store.store import Store
from tests.commands import PROGRAM, Forked
from tests.conftest import command_environment

KB = 1000


def opened(root: Path, max_kb: float | None = None) -> Store:
    return Store.open(root, max_gb=None if max_kb is None else max_kb / 1e6)


def put(store: Store, kind: str, key: str, used: float | None = None, kb: float = 1.0) -> None:
    """Write an artifact of about this size that was last used ``used`` seconds ago."""
    store.artifacts.save(kind, key, {"w": torch.zeros(int(kb * KB), dtype=torch.uint8)}, {})
    if used is not None:
        for path in (store.root / "artifacts" / kind).glob(f"{key}.*"):
            os.utime(path, (time.time() - used,) * 2)


def keys(store: Store) -> set[str]:
    return {one.key for one in artifacts(store.root) if store.artifacts.has(one.kind, one.key)}


def test_what_was_used_longest_ago_goes_first_by_kind(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for number in range(3):
        put(store, "quantized", f"q{number}", used=1000 + number)
        put(store, "statistics", f"s{number}", used=500 + number)
        put(store, "outputs", f"o{number}", used=number)
    order = ["o2", "o1", "o0", "s2", "s1", "s0", "q2", "q1", "q0"]
    size = sum(one.size_bytes for one in artifacts(store.root)) // 9
    for left in range(8, -1, -1):
        evicted = store.artifacts.eviction.prune(left * size + 10)
        assert evicted is not None
        assert [one.key for one in evicted.removed] == [order[8 - left]]
    assert evicted.left_bytes == 0
    assert not [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]


def test_reading_counts_as_use(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, "quantized", "read", used=1000)
    put(store, "quantized", "unread", used=900)
    assert opened(tmp_path).artifacts.load("quantized", "read") is not None
    store.artifacts.eviction.prune(1500)
    assert keys(store) == {"read"}


def test_a_store_stays_within_its_bound_as_it_is_written(tmp_path: Path, said: list[str]) -> None:
    store = opened(tmp_path, max_kb=20)
    for number in range(60):
        put(store, "quantized", f"k{number:02}")
        assert sum(one.size_bytes for one in artifacts(tmp_path)) <= 20 * KB
    assert "k59" in keys(store)
    assert len(keys(store)) > 8
    assert not said


def test_what_other_processes_wrote_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "SCAN_SECONDS", 0.0)
    monkeypatch.setattr(eviction, "SCAN_SHARE", 0)
    one, other = opened(tmp_path, max_kb=20), opened(tmp_path)
    put(one, "quantized", "first")
    for number in range(30):
        put(other, "quantized", f"k{number}")
    put(one, "quantized", "last")
    assert sum(stored.size_bytes for stored in artifacts(tmp_path)) <= 20 * KB


def test_a_new_process_counts_what_the_store_holds_before_it_has_room(tmp_path: Path) -> None:
    for number in range(6):
        put(opened(tmp_path), "outputs", f"k{number}", used=1000 - number)
    assert opened(tmp_path, max_kb=20).artifacts.eviction.room_for(KB)
    assert len(keys(opened(tmp_path))) == 6
    # Room is made by eviction, down to a share of the bound.
    assert opened(tmp_path, max_kb=6.5).artifacts.eviction.room_for(3 * KB)
    assert sum(stored.size_bytes for stored in artifacts(tmp_path)) <= 3.5 * KB
    assert "k5" in keys(opened(tmp_path))
    with opened(tmp_path).locks.pinned([("outputs", key) for key in keys(opened(tmp_path))]):
        assert not opened(tmp_path, max_kb=3.5).artifacts.eviction.room_for(3 * KB)


def test_what_others_wrote_since_the_last_look_counts_where_room_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "SCAN_SECONDS", 0.0)
    monkeypatch.setattr(eviction, "SCAN_SHARE", 0)
    store = opened(tmp_path, max_kb=8)
    assert store.artifacts.eviction.room_for(KB)
    for number in range(7):
        put(opened(tmp_path), "outputs", f"k{number}")
    assert store.artifacts.eviction.room_for(3 * KB)
    assert sum(stored.size_bytes for stored in artifacts(tmp_path)) <= 5 * KB


def test_pinned_artifacts_stay_and_alone_beyond_the_bound_it_is_said_once(tmp_path: Path, said: list[str]) -> None:
    store = opened(tmp_path, max_kb=4)
    wanted = [("quantized", f"k{number}") for number in range(6)]
    with opened(tmp_path).locks.pinned(wanted):
        for kind, key in wanted:
            put(store, kind, key)
            put(store, "outputs", f"other{key}")
        assert keys(store) >= {key for _, key in wanted}
        assert len(said) == 1
        assert "more than store.max_gb=4e-06: running jobs need" in said[0]
        assert not store.artifacts.eviction.room_for(KB)
    assert store.artifacts.eviction.room_for(KB)
    assert sum(stored.size_bytes for stored in artifacts(tmp_path)) <= 3 * KB
    assert not store.artifacts.eviction.room_for(5 * KB)
    assert opened(tmp_path).artifacts.eviction.room_for(10**15), "a store without a bound has room"


def test_a_pin_holds_for_the_pieces_of_what_it_names(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for key in ("a-0", "a-1", "b-0", "ab-0"):
        put(store, "outputs", key)
    put(store, "statistics", "a-0")
    with opened(tmp_path).locks.pinned([("outputs", "a")]):
        evicted = store.artifacts.eviction.prune(0)
    assert evicted is not None
    assert keys(store) == {"a-0", "a-1"}
    assert {one.kind for one in artifacts(tmp_path)} == {"outputs"}
    assert evicted.pinned_bytes == evicted.left_bytes


def test_a_pin_that_comes_while_its_artifact_is_being_evicted_brings_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    put(store, "quantized", "k")
    answers = iter([set(), {("quantized", "k")}, {("quantized", "k")}])
    monkeypatch.setattr(store.locks, "pins", lambda: next(answers))
    evicted = store.artifacts.eviction.prune(0)
    assert evicted is not None
    assert evicted.removed == ()
    assert store.artifacts.load("quantized", "k") is not None


def test_tensors_that_a_killed_writer_left_without_a_marker_are_removed(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, "outputs", "k")
    (tmp_path / "artifacts" / "outputs" / "k.json").unlink()
    assert store.artifacts.eviction.prune(0) is not None
    assert artifacts(tmp_path) == []


def test_two_do_not_evict_at_once(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, "outputs", "k")
    with opened(tmp_path).locks.lock("evict", "artifacts"):
        assert store.artifacts.eviction.prune(0) is None
    assert keys(store) == {"k"}


def test_a_dry_run_removes_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, "outputs", "k")
    before = sorted(tmp_path.rglob("*"))
    evicted = Store.reading(tmp_path).artifacts.eviction.prune(0, KINDS, lambda _: True, dry_run=True)
    assert evicted is not None
    assert [one.key for one in evicted.removed] == ["k"]
    assert sorted(tmp_path.rglob("*")) == before


WORKER = """
import sys
import torch
from mmq_sweeps.reporting.progress import warnings_to
from mmq_sweeps.store.store import Store

root, number, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
said = []
shown = warnings_to(said.append)
shown.__enter__()
store = Store.open(root, max_gb=30e-6)
computed = 0
for turn in range(rounds):
    key = (turn * 7 + number * 3) % 40
    found = store.artifacts.load("quantized", f"k{key}")
    if found is None:
        computed += 1
        store.artifacts.save("quantized", f"k{key}", {"w": torch.full((2000,), key, dtype=torch.uint8)}, {"key": key})
        continue
    tensors, description = found
    assert description == {"key": key}
    assert tensors["w"].tolist() == [key] * 2000
own = [("outputs", f"mine{number}")]
with store.locks.pinned(own):
    store.artifacts.save(*own[0], {"w": torch.zeros(2000, dtype=torch.uint8)}, {})
    for turn in range(rounds // 4):
        store.artifacts.save("quantized", f"x{number}.{turn}", {"w": torch.zeros(2000, dtype=torch.uint8)}, {})
        assert store.artifacts.load(*own[0]) is not None
assert not said, said
print(computed)
"""


def test_many_processes_read_write_and_evict_in_one_store(tmp_path: Path) -> None:
    """Nothing is half-read or taken for corrupt, pinned artifacts stay, and the bound holds in the end."""
    processes = [
        Forked(PROGRAM, [WORKER, str(tmp_path), str(number), "120"], tmp_path, command_environment())
        for number in range(4)
    ]
    computed = 0
    for process in processes:
        out, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        computed += int(out)
    assert computed >= 40
    # A process that finds another process evicting writes on; the next write brings the store back under its bound.
    put(opened(tmp_path, max_kb=30), "quantized", "last")
    assert sum(one.size_bytes for one in artifacts(tmp_path)) <= 30 * KB
    assert not (tmp_path / "corrupt").exists()
