"""Stores on real file systems that are full or mounted read-only, in a mount namespace of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import command_environment

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def in_namespace(mount: str, program: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python program after ``mount``, which sees ``$ROOT``; mounts are gone when the program ends."""
    try:
        able = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare: apt-get install util-linux mount")
    if able.returncode:
        pytest.skip("may not mount: run as root, or sysctl -w kernel.unprivileged_userns_clone=1")
    script = f'{mount} && exec "$PYTHON" -c "$PROGRAM" "$ROOT"'
    return subprocess.run(
        [*NAMESPACE, "sh", "-c", script],
        env=command_environment(ROOT=str(root), PYTHON=sys.executable, PROGRAM=program),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


READ_ONLY = 'mount --bind "$ROOT" "$ROOT" && mount -o remount,ro,bind "$ROOT"'
READS = """
import sys
from mmq_sweeps.errors import StoreError
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
try:
    Store.open(sys.argv[1])
except StoreError as error:
    print(error.strerror)
reading = Store.reading(sys.argv[1])
print([record.id for record in reading.records()], reading.locks.holder("cells", "c"), reading.locks.pins())
print(reading.artifacts.read("quantized", "k")[1])
"""


def test_a_store_on_a_read_only_disk_is_read(tmp_path: Path) -> None:
    from mmq_sweeps.store.store import Store
    from tests.store.test_store import ITEMS, record

    root = tmp_path / "mine ünd yours"
    store = Store.open(root)
    store.save(record(), ITEMS)
    store.artifacts.save("quantized", "k", {}, {"about": "k"})
    done = in_namespace(READ_ONLY, READS, root)
    assert done.returncode == 0, done.stderr
    refused, found, artifact = done.stdout.splitlines()
    assert refused.startswith(f"cannot write {root}: Read-only file system. Choose another folder with store.dir=")
    assert found == "['0123456789ab'] None set()"
    assert artifact == "{'about': 'k'}"


FULL = 'mount -t tmpfs -o size=256k none "$ROOT"'
FILLS = """
import os, sys
from pathlib import Path
from mmq_sweeps.errors import StoreError
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

def record(identity, **more):
    return Record(id=identity, status="done", cell={"parts": {}}, names={}, **more)

root = Path(sys.argv[1])
store = Store.open(root)
store.save(record("first"), [])
lock = store.locks.lock("cells", "held")
with store.locks.pinned([("quantized", "k")]):
    (root / "filler").write_bytes(b"")
    with (root / "filler").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    for attempt in (
        lambda: store.save(record("second", notes={"long": "x" * 5000}), []),
        lambda: store.artifacts.save("quantized", "k", {}, {"long": "x" * 5000}),
        lambda: store.note("sweeps/s/sweep.json", {"long": "x" * 5000}),
        lambda: store.locks.lock("cells", "other"),
    ):
        try:
            attempt()
            print("done")
        except StoreError as error:
            print(error.strerror)
    print(store.record("first").id, store.record("second"), store.artifacts.has("quantized", "k"), lock.held)
lock.release()
print(os.listdir(root / "tmp"), os.listdir(root / "locks" / "cells"), os.listdir(root / "pins"))
os.unlink(root / "filler")
print(store.save(record("second"), []).id, store.locks.lock("cells", "other") is not None)
"""


def test_a_full_disk_is_told_and_what_was_recorded_is_kept(tmp_path: Path) -> None:
    done = in_namespace(FULL, FILLS, tmp_path)
    assert done.returncode == 0, done.stderr
    *refused, kept, left, again = done.stdout.splitlines()
    assert len(refused) == 4
    for line in refused:
        assert line.startswith(f"cannot write {tmp_path}/")
        assert ": No space left on device. Choose another folder with store.dir=FOLDER, or make room" in line
    assert kept == "first None False True"
    # A lock that cannot be released for want of room is left to its lease; the owner's end frees it.
    assert left in ("[] [] []", "[] ['held.json'] []")
    assert again == "second True"
