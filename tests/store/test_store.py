from __future__ import annotations

import errno
import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from mmq_sweeps.config.problems import problems
from mmq_sweeps.errors import StoreError
from mmq_sweeps.identity.cell import digest
from mmq_sweeps.store.artifacts import PAUSE_SECONDS
from mmq_sweeps.store.record import CorruptRecordError, Record
from mmq_sweeps.store.store import SCHEMA, STALE_SECONDS, Store
from tests.commands import PROGRAM, run_forked
from tests.conftest import command_environment

ITEMS = [{"id": "a", "prediction": "ein Fuß 🙂\n", "scores": {"cider": 0.5}}]


def record(identity: str = "0123456789ab", **more: object) -> Record:
    return Record(id=identity, status="done", cell={"parts": {}}, names={"model": "m"}, **more)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def test_a_record_comes_back_as_it_was(store: Store, said: list[str]) -> None:
    written = store.save(record(metrics={"cider": {"value": 0.1 + 0.2}}), ITEMS)
    assert store.record(written.id) == written
    assert store.items(written.id) == ITEMS
    assert store.records() == [written]
    assert store.record("ffffffffffff") is None
    assert not said
    assert not list((store.root / "tmp").glob("record*"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sha256": "x"}', "\x00\x01", "null"])
def test_a_corrupt_record_is_moved_aside_and_said(store: Store, said: list[str], text: str) -> None:
    store.save(record(), ITEMS)
    store.record_path("0123456789ab").write_text(text)
    assert store.record("0123456789ab") is None
    assert "record.json" in said[0]
    assert "moved to" in said[0]
    assert not store.record_path("0123456789ab").exists()
    assert list((store.root / "corrupt").iterdir())
    assert store.save(record(), ITEMS)
    assert store.record("0123456789ab") is not None


def test_one_changed_digit_is_found(store: Store, said: list[str]) -> None:
    path = store.record_path(store.save(record(metrics={"cider": {"value": 0.125}})).id)
    path.write_text(path.read_text().replace("0.125", "0.126"))
    assert store.record("0123456789ab") is None
    assert "does not match its sha256" in said[0]


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_text("[]")])
def test_items_that_do_not_fit_their_record_are_found(store: Store, said: list[str], harm: object) -> None:
    store.save(record(), ITEMS)
    harm(store.record_path("0123456789ab").parent / "items.json")
    assert store.record("0123456789ab") is None
    assert "items.json" in said[0]


def test_another_schema_is_not_misread() -> None:
    text = record().to_json()
    with pytest.raises(CorruptRecordError, match="sha256"):
        Record.from_json(text.replace('"schema": 1', '"schema": 2'))


def test_an_artifact_comes_back_as_it_was(store: Store) -> None:
    tensors = {"w:codes": torch.arange(9, dtype=torch.uint8), "w:scale": torch.rand(3, 1).half()}
    store.artifacts.save("quantized", "key", tensors, {"notes": {"x": 1}})
    found, description = store.artifacts.load("quantized", "key")
    assert description == {"notes": {"x": 1}}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert store.artifacts.has("quantized", "key")
    assert store.artifacts.load("quantized", "other") is None


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("harm", [b"", b"garbage", None])
def test_a_corrupt_artifact_is_moved_aside(store: Store, said: list[str], suffix: str, harm: bytes | None) -> None:
    store.artifacts.save("quantized", "key", {"w": torch.ones(3)}, {"notes": {}})
    path = store.root / "artifacts" / "quantized" / f"key{suffix}"
    path.write_bytes(path.read_bytes()[:-1] + b"!" if harm is None else harm)
    assert store.artifacts.load("quantized", "key") is None
    assert "key.safetensors" in said[0]
    assert not store.artifacts.has("quantized", "key")


def test_nothing_is_unpickled(store: Store, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    store.artifacts.save("quantized", "key", {"w": torch.ones(3)}, {})
    (store.root / "artifacts" / "quantized" / "key.safetensors").write_bytes(pickle.dumps(Bomb()))
    assert store.artifacts.load("quantized", "key") is None
    assert not (tmp_path / "exploded").exists()


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"cannot write .*file/store: Not a directory. Choose another .* store.dir"):
        Store.open(tmp_path / "file" / "store")


def test_a_full_disk_says_so_and_keeps_what_was(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(record(), ITEMS)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*record.json: No space left on device.*what was recorded"):
        store.save(record("ba9876543210"), ITEMS)
    monkeypatch.undo()
    assert store.record("0123456789ab") is not None
    assert store.record("ba9876543210") is None
    assert not list((store.root / "tmp").glob("items*"))


def test_a_process_that_may_not_write_more_leaves_a_readable_store(tmp_path: Path) -> None:
    """A real limit on the size of files makes the write fail in the middle of a file."""
    program = """
import resource, signal, sys
import torch
from mmq_sweeps.errors import StoreError
from mmq_sweeps.store.store import Store
store = Store.open(sys.argv[1])
store.artifacts.save("quantized", "small", {"w": torch.ones(10)}, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    store.artifacts.save("quantized", "large", {"w": torch.ones(100_000)}, {})
except StoreError as error:
    print(error.strerror)
"""
    done = run_forked(PROGRAM, [program, str(tmp_path)], tmp_path, command_environment())
    assert "large.safetensors: File too large" in done.stdout
    store = Store.open(tmp_path)
    assert store.artifacts.load("quantized", "small") is not None
    assert store.artifacts.load("quantized", "large") is None
    assert not list((tmp_path / "tmp").iterdir())


def test_what_killed_writers_left_is_removed_after_a_day(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    old, new = store.root / "tmp" / "old", store.root / "tmp" / "new"
    for path in (old, new):
        path.write_text("half")
    past = old.stat().st_mtime - STALE_SECONDS - 60
    os.utime(old, (past, past))
    Store.open(tmp_path)
    assert new.exists()
    assert not old.exists()


def test_records_hold_no_value_that_json_does_not(store: Store) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(record(metrics={"cider": {"value": float("nan")}}))
    written = store.save(record())
    assert json.loads(store.record_path(written.id).read_text())["id"] == written.id


def test_a_record_is_named_by_what_is_in_its_file(store: Store) -> None:
    assert store.record_sha("0123456789ab") is None
    store.save(record(created="1"))
    first = store.record_sha("0123456789ab")
    store.save(record(created="1"))
    assert store.record_sha("0123456789ab") == first
    store.save(record(created="2"))
    assert store.record_sha("0123456789ab") not in (None, first)


def test_a_summary_is_the_record_without_a_look_at_its_items(store: Store) -> None:
    written = store.save(record(), ITEMS)
    (store.record_path(written.id).parent / "items.json").unlink()
    assert store.summary(written.id) == written
    assert store.record(written.id) is None


def test_a_field_that_came_later_has_its_default_in_older_records() -> None:
    content = json.loads(record().to_json())
    del content["sha256"], content["notes"], content["loads_in"]
    older = json.dumps({**content, "sha256": digest(content)})
    assert Record.from_json(older) == record()
    del content["names"]
    with pytest.raises(CorruptRecordError, match=r"lacks a field.*names"):
        Record.from_json(json.dumps({**content, "sha256": digest(content)}))


def test_a_store_says_its_schema(tmp_path: Path) -> None:
    Store.open(tmp_path)
    assert json.loads((tmp_path / "store.json").read_text()) == {"schema": SCHEMA}
    Store.open(tmp_path)


@pytest.mark.parametrize("open_store", [Store.open, Store.reading])
def test_a_store_of_another_schema_is_refused(tmp_path: Path, open_store: Callable[[Path], Store]) -> None:
    root = tmp_path / "my runs"
    Store.open(root).save(record())
    (root / "store.json").unlink()
    before = sorted(root.rglob("*"))
    with pytest.raises(StoreError, match=r"my runs: is a store of schema 1, .* reads schema 2; give another folder"):
        open_store(root)
    (root / "store.json").write_text('{"schema": 3}')
    with pytest.raises(StoreError, match=r"schema 3, .* upgrade mmq-sweeps"):
        open_store(root)
    (root / "store.json").write_text("{")
    with pytest.raises(StoreError, match=r'store.json: cannot be read; .* \{"schema": 2\}'):
        open_store(root)
    (root / "store.json").unlink()
    assert sorted(root.rglob("*")) == before


def test_a_store_that_is_only_read_is_left_as_it_is(store: Store, tmp_path: Path, said: list[str]) -> None:
    store.save(record(), ITEMS)
    store.save(record("ba9876543210"))
    store.artifacts.save("quantized", "k", {"w": torch.ones(3)}, {})
    store.record_path("ba9876543210").write_text("{")
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    reading = Store.reading(store.root)
    assert [one.id for one in reading.records()] == ["0123456789ab"]
    assert reading.artifacts.load("quantized", "k") is not None
    assert "left where it is" in said[0]
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before
    with pytest.raises(StoreError, match="is no store"):
        Store.reading(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_record_that_is_being_replaced_is_not_taken_for_a_corrupt_one(store: Store, said: list[str]) -> None:
    """Between a cell's new items and its new record, items and record do not fit."""
    written = store.save(record(created="new"), ITEMS)
    new = store.record_path(written.id).read_bytes()
    store.save(record(created="old"), [])
    items = json.dumps(ITEMS, ensure_ascii=False).encode()
    (store.record_path(written.id).parent / "items.json").write_bytes(items)
    writer = threading.Timer(PAUSE_SECONDS, lambda: store.files.write(store.record_path(written.id), new))
    writer.start()
    assert store.record(written.id) == written
    writer.join()
    assert not said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("store.max_gb=0", "store.max_gb=0: choose a number of gigabytes above 0, or null for no bound."),
        ("store.max_gb=-2.5", "store.max_gb=-2.5: choose a number"),
        ("store.max_gb=nan", "store.max_gb=nan: choose a number"),
        ("store.max_gb=inf", "store.max_gb=inf: choose a number"),
        ("view.max_bpw=0", "view.max_bpw=0: choose a number of bits above 0, or null for no budget."),
        ("view.max_bpw=inf", "view.max_bpw=inf: choose a number of bits"),
        ("store.lease_seconds=1", "store.lease_seconds=1: choose 2 to 3600 seconds."),
        ("store.lease_seconds=nan", "store.lease_seconds=nan: choose 2 to 3600"),
        ("store.dir=''", "store.dir='': choose a folder"),
    ],
)
def test_settings_that_make_no_sense_are_told(composed: Callable, override: str, message: str) -> None:
    found = problems(OmegaConf.to_container(composed(override), resolve=True))
    assert [problem for problem in found if problem.startswith(message)], found


def test_the_store_of_a_configuration_has_its_settings(composed: Callable, tmp_path: Path) -> None:
    config = composed(f"store.dir='{tmp_path}/mine'", "store.max_gb=0.5", "store.lease_seconds=30")
    store = Store.of(config["store"], label="me")
    assert store.root == tmp_path / "mine"
    assert store.artifacts.eviction.max_bytes == 500_000_000
    with store.locks.lock("cells", "c") as lock:
        assert (lock.owner.lease_seconds, lock.owner.label) == (30, "me")
    assert problems(OmegaConf.to_container(config, resolve=True)) == []
    assert Store.of(composed(f"store.dir='{tmp_path}/mine'")["store"]).artifacts.eviction.max_bytes is None
