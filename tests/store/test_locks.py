from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mmq_sweeps.store import lock_owner as owners
from mmq_sweeps.store.atomic_files import Files
from mmq_sweeps.store.lock_owner import Owner, this_machine
from mmq_sweeps.store.locks import Locks
from mmq_sweeps.store.store import Store
from tests.conftest import command_environment

LEASE = 0.4
HOLDER = """
import sys, time
from mmq_sweeps.store.store import Store
store = Store.open(sys.argv[1], lease_seconds=float(sys.argv[2]), label="other")
if sys.argv[3] == "pin":
    needed = store.locks.pinned([("quantized", "k")])
    needed.__enter__()
else:
    lock = store.locks.lock("cells", "c")
    assert lock
print("holds", flush=True)
time.sleep(600)
"""


made: list[Locks] = []


def locks(root: Path, machine: str | None = None, lease: float = LEASE) -> Locks:
    """Return the locks of a process on ``machine``, by default this machine."""
    files = Files(root)
    files.prepare()
    made.append(Locks(files, lease, "me", machine))
    return made[-1]


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    """Release the locks that a test leaves, which would be renewed a thousand times a second during all other tests."""
    yield
    while made:
        for lock in [*(one := made.pop())._held]:
            one.release(lock)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return ``holder(lease=60)``, which starts a process that holds the lock ``cells/c``, or a pin, until it is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(what: str = "lock", lease: float = 60) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), str(lease), what],
            stdout=subprocess.PIPE, text=True, env=command_environment(),
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_until(true: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_one_has_a_lock_and_the_next_gets_it_when_it_is_released(tmp_path: Path) -> None:
    one, two = locks(tmp_path), locks(tmp_path)
    lock = one.lock("cells", "c")
    assert lock is not None
    assert lock.held
    assert two.lock("cells", "c") is None
    assert one.lock("cells", "c") is None
    assert two.lock("cells", "d") is not None
    assert (held_by := two.holder("cells", "c")) is not None
    assert (held_by.pid, held_by.label) == (os.getpid(), "me")
    assert set(two.holders("cells")) == {"c", "d"}
    lock.release()
    assert not lock.held
    assert two.holder("cells", "c") is None
    with two.lock("cells", "c") as again:
        assert again.held
    assert not list((tmp_path / "locks" / "cells").glob("c*"))
    assert not list((tmp_path / "tmp").iterdir())


def test_where_there_are_no_hard_links_files_are_created_exclusively(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    one, two = locks(tmp_path), locks(tmp_path)
    lock = one.lock("cells", "c")
    assert lock is not None
    assert two.lock("cells", "c") is None
    lock.release()
    assert two.lock("cells", "c") is not None


def test_a_living_owner_on_another_machine_keeps_its_lock_beyond_the_lease(tmp_path: Path) -> None:
    far, here = locks(tmp_path, "far"), locks(tmp_path)
    lock = far.lock("cells", "c")
    assert lock is not None
    end = time.monotonic() + 4 * LEASE
    while time.monotonic() < end:
        assert here.lock("cells", "c") is None
        time.sleep(LEASE / 20)
    assert lock.held


def dead_owner(root: Path, kind: str = "cells", name: str = "c") -> Path:
    """Write the lock of a process on another machine that no longer renews it."""
    gone = replace(Owner.here("gone", LEASE, "far"), host="node7")
    path = root / "locks" / kind / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gone.to_json())
    return path


@pytest.mark.parametrize("skew_seconds", [0, -365 * 86400, 365 * 86400])
def test_a_dead_node_loses_its_lock_after_a_lease_whatever_its_clock_said(tmp_path: Path, skew_seconds: int) -> None:
    here = locks(tmp_path)
    path = dead_owner(tmp_path)
    then = time.time() + skew_seconds
    os.utime(path, (then, then))
    first = time.monotonic()
    assert here.lock("cells", "c") is None
    lock = here.acquire("cells", "c", done=lambda: False)
    assert lock is not None
    assert time.monotonic() - first >= LEASE
    assert here.holder("cells", "c") == lock.owner


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 1}', b"\xff"])
def test_a_lock_that_cannot_be_read_is_a_strangers(tmp_path: Path, content: bytes) -> None:
    here = locks(tmp_path)
    dead_owner(tmp_path).write_bytes(content)
    assert here.lock("cells", "c") is None
    assert here.acquire("cells", "c", done=lambda: False) is not None


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path, holder: Callable) -> None:
    process = holder(lease=3600)
    here = locks(tmp_path, lease=3600)
    assert here.lock("cells", "c") is None
    assert here.holder("cells", "c").label == "other"
    process.send_signal(signal.SIGKILL)
    # Not waited for: a process that its parent has not reaped has ended as well.
    wait_until(lambda: here.holder("cells", "c") is None)
    assert here.lock("cells", "c") is not None


def test_a_stopped_process_loses_its_lock_and_notices(tmp_path: Path) -> None:
    far, here = locks(tmp_path, "far", lease=3600), locks(tmp_path)
    lost = far.lock("cells", "c")
    path = tmp_path / "locks" / "cells" / "c.json"
    path.write_bytes(replace(lost.owner, lease_seconds=LEASE).to_json())
    taken = here.acquire("cells", "c", done=lambda: False)
    assert taken is not None
    lost.release()
    assert here.holder("cells", "c") == taken.owner, "a late release must not remove another's lock"
    far, here = locks(tmp_path, "far"), locks(tmp_path)
    lost = far.lock("cells", "d")
    (tmp_path / "locks" / "cells" / "d.json").write_bytes(Owner.here("taker", LEASE, "elsewhere").to_json())
    wait_until(lambda: not lost.held)


def test_a_process_id_that_was_given_again_is_another_process(tmp_path: Path) -> None:
    here = locks(tmp_path)
    path = dead_owner(tmp_path)
    path.write_bytes(replace(Owner.here("old", 3600, this_machine()), started="1").to_json())
    assert here.lock("cells", "c") is not None


def test_a_machine_without_proc_goes_by_the_process_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "_started", lambda _pid: None)
    assert not Owner.here("", 1, "here").gone("here")


def test_waiting_ends_when_the_work_is_done(tmp_path: Path) -> None:
    one, two = locks(tmp_path), locks(tmp_path)
    lock = one.lock("quantize", "w")
    asked: list[int] = []
    assert two.acquire("quantize", "w", done=lambda: len(asked) == 3, waiting=lambda: asked.append(1)) is None
    assert lock is not None
    answers = iter([False, True])
    lock.release()
    assert two.acquire("quantize", "w", done=lambda: next(answers)) is None, "done is asked again under the lock"
    assert two.holder("quantize", "w") is None


def test_a_claim_of_a_process_that_died_taking_over_is_taken_over(tmp_path: Path) -> None:
    here = locks(tmp_path)
    token = json.loads(dead_owner(tmp_path).read_text())["token"]
    claim = dead_owner(tmp_path, name="claim").rename(tmp_path / "locks" / "cells" / f"c.{token}.claim")
    assert here.acquire("cells", "c", done=lambda: False) is not None
    assert not claim.exists()


def test_of_many_who_wait_for_a_dead_owner_one_takes_over(tmp_path: Path) -> None:
    """Eight processes take the lock over at the same moment, each on a machine of its own, twenty times."""
    for round_ in range(20):
        takers = [locks(tmp_path, f"machine{number}", lease=0.001) for number in range(8)]
        name = f"c{round_}"
        gone = replace(Owner.here("gone", 0.001, "far"), host="node7")
        path = tmp_path / "locks" / "cells" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gone.to_json())
        for taker in takers:
            assert taker.lock("cells", name) is None
        time.sleep(0.002)
        barrier, got = threading.Barrier(8), []

        def take(taker: Locks, name: str = name, barrier: threading.Barrier = barrier, got: list[object] = got) -> None:
            barrier.wait()
            lock = taker.lock("cells", name)
            if lock is not None:
                got.append(lock)

        threads = [threading.Thread(target=take, args=[taker]) for taker in takers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1


def test_a_lock_that_was_lost_is_no_longer_renewed(tmp_path: Path) -> None:
    here = locks(tmp_path)
    lock = here.lock("cells", "c")
    assert lock is not None
    assert here._thread is not None
    lock.path.write_bytes(Owner.here("taker", LEASE, "elsewhere").to_json())
    wait_until(lambda: here._thread is None)
    assert not lock.held


COUNTER = """
import sys, time
from pathlib import Path
from mmq_sweeps.store.store import Store
root, inside = Path(sys.argv[1]), Path(sys.argv[1]) / "inside"
store = Store.open(root)
for number in range(int(sys.argv[2])):
    with store.locks.acquire("work", "w", done=lambda: False):
        inside.mkdir()  # Fails where two are inside.
        time.sleep(0.001)
        inside.rmdir()
print("done")
"""


def test_never_are_two_processes_inside(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTER, str(tmp_path), "15"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=command_environment(),
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert out == "done\n", errors


def test_pins_of_the_dead_do_not_count(tmp_path: Path, holder: Callable) -> None:
    here = locks(tmp_path)
    with here.pinned([("outputs", "a"), ("quantized", "b")]):
        assert locks(tmp_path, "far").pins() == {("outputs", "a"), ("quantized", "b")}
    assert here.pins() == set()
    process = holder("pin", lease=3600)
    assert here.pins() == {("quantized", "k")}
    process.kill()
    process.wait()
    assert here.pins() == set()
    assert not list((tmp_path / "pins").iterdir())


def test_a_strangers_pin_counts_for_a_lease(tmp_path: Path) -> None:
    here = locks(tmp_path)
    (tmp_path / "pins").mkdir()
    stranger = json.loads(Owner.here("", LEASE, "far").to_json())
    (tmp_path / "pins" / "p.json").write_text(json.dumps({**stranger, "artifacts": [["outputs", "a"]]}))
    assert here.pins() == {("outputs", "a")}
    wait_until(lambda: here.pins() == set())


def test_a_forked_process_does_not_renew_its_parents_locks(tmp_path: Path) -> None:
    program = """
import os, sys, time
from mmq_sweeps.store.store import Store
store = Store.open(sys.argv[1], lease_seconds=2)
lock = store.locks.lock("cells", "c")
child = os.fork()
if child == 0:
    own = store.locks.lock("cells", "d")
    assert own is not None
    assert [one.path.stem for one in store.locks._held] == ["d"]
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, str(tmp_path)],
        capture_output=True, text=True, check=True, env=command_environment(),
    )  # fmt: skip
    assert done.stdout == "0\n", done.stderr


@pytest.mark.parametrize("name", ["../x", "a/b"])
def test_a_name_is_part_of_a_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="parts of a file name"):
        locks(tmp_path).lock("cells", name)


def test_a_store_passes_on_its_lease_and_label(tmp_path: Path) -> None:
    store = Store.open(tmp_path, lease_seconds=7, label="worker 3")
    with store.locks.lock("cells", "c"):
        holder = store.locks.holder("cells", "c")
    assert (holder.lease_seconds, holder.label) == (7, "worker 3")
