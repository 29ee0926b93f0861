"""``cancel``, ``retry``, ``logs`` and ``status`` as people run them."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from launch import sweep_file as recorded
from launch.workers import cancel_request
from mmq_sweeps.store.store import Store
from tests.launch import cells as made
from tests.launch.processes import HELD, POOL, Process, Sweeps, alive
from tests.launch.stores import launched, worker
from tests.own_method import write_method
from tests.terminal import on_a_terminal

CELLS = made.grid(2, 3)


def ended(process: Process) -> tuple[int, str]:
    told = process.communicate(timeout=240)[1]
    return process.returncode, told


def test_cancel_stops_a_sweep_and_retry_goes_on_with_it(sweeps: Sweeps) -> None:
    sweeps.hold()
    pool = sweeps.start("method=rtn", "component=language", "bits=2,3,4", HELD, *POOL)
    workers = sweeps.held(2)
    cancelled = sweeps.launch("cancel")
    assert cancelled.returncode == 0, cancelled.stderr
    assert "asked 2 workers to stop after the cell at hand; 2 of them on this machine" in cancelled.stdout
    sweeps.let_go()
    status, told = ended(pool)
    assert status == 1, told
    assert "2 cells are missing; run the same command again to go on" in told
    assert not any(alive(str(pid)) for pid in workers)
    kept = sweeps.records()
    assert len(kept) == 2
    seen = sweeps.status()
    assert seen["cells"] == {"total": 4, "queued": 2, "running": 0, "done": 2, "failed": 0}
    assert {one["state"] for one in seen["workers"]} == {"stopped"}

    retried = sweeps.launch("retry", "--sweep", seen["sweep"][:5])
    assert retried.returncode == 0, retried.stderr
    assert "CIDEr" in retried.stdout
    assert kept.items() <= sweeps.records().items(), "a finished cell was run again"
    assert len(sweeps.records()) == 4
    assert len(sweeps.status()["workers"]) == 4, "retry did not use the recorded launcher, which has two workers"


def test_cancel_reaches_a_worker_that_cannot_be_signalled(sweeps: Sweeps) -> None:
    """A worker on another machine looks into the store, and so does the single process of a plain sweep."""
    sweeps.hold()
    sweep = sweeps.start_elsewhere("method=rtn", "component=language", "bits=2,3", HELD)
    assert sweeps.held(1) == [sweep.pid]
    cancelled = sweeps.launch("cancel")
    assert "asked 1 worker to stop after the cell at hand" in cancelled.stdout, cancelled.stderr
    assert "this machine" not in cancelled.stdout
    time.sleep(cancel_request.LOOK_SECONDS)  # It looks no more often, and its cells are quick.
    sweeps.let_go()
    status, told = ended(sweep)
    assert status == 1, told
    assert any(line.endswith("worker stopped: cancelled") for line in sweeps.log_lines())
    assert len(sweeps.records()) == 1


def failing_method(folder: Path) -> str:
    """Write a method outside the package that fails at three bits until the file ``mended`` is beside it."""
    return write_method(
        folder,
        "fragile",
        "if not Path(__file__).with_name('mended').exists(): raise RuntimeError('three is too many')",
    )


def test_a_failed_cell_is_told_by_status_and_logs_and_run_again_by_retry(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(sweeps.folder))
    done = sweeps.run("method=fragile", "bits=2,3", failing_method(sweeps.folder))
    assert done.returncode == 1, done.stderr
    seen = sweeps.status()
    assert seen["failures"] == {"RuntimeError": 1}
    failed = next(cell["id"] for cell in seen["list"] if cell["state"] == "failed")
    shown = sweeps.launch("status").stdout
    assert "3 cells: 0 queued, 0 running, 2 done, 1 failed" in shown
    assert "failed: 1 RuntimeError" in shown

    logs = sweeps.launch("logs", failed[:6])
    assert logs.returncode == 0, logs.stderr
    assert f"{failed} begins: fragile vision 3 connector 3 language 3" in logs.stdout
    assert f"{failed} ended: fragile vision 3 connector 3 language 3: failed, RuntimeError" in logs.stdout
    assert "raise RuntimeError('three is too many')" in logs.stdout
    others = [cell["id"] for cell in seen["list"] if cell["id"] != failed]
    assert not any(other in logs.stdout for other in others)

    (sweeps.folder / "mended").touch()
    before = sweeps.records()
    retried = sweeps.launch("retry")
    assert retried.returncode == 0, retried.stderr
    after = sweeps.records()
    assert {cell for cell in after if after[cell] != before[cell]} == {failed}
    assert sweeps.launch("logs", failed).stdout.endswith(f"{failed} done\n")


@pytest.fixture
def recorded_sweep(sweeps: Sweeps) -> str:
    """Record a made-up sweep that is under way in the store of ``sweeps``; return its id."""
    store = Store.open(sweeps.store)
    sweep_id = launched(store, made.sweep(CELLS))
    for cell in CELLS[:3]:
        store.save(made.record(cell))
    worker(store, sweep_id, "first", cell=CELLS[3].id, title=CELLS[3].title(), done=3)
    log = store.root / "sweeps" / sweep_id / "logs" / "first.log"
    log.parent.mkdir()
    log.write_text(
        f"2026-01-31T12:00:00.000Z {CELLS[3].id} begins: {CELLS[3].title()}\n"
        "a library complains\n"
        f"2026-01-31T12:00:01.000Z {CELLS[2].id} begins: {CELLS[2].title()}\n"
        "of something else\n"
    )
    return sweep_id


def test_status_and_logs_change_nothing_and_need_no_right_to_write(sweeps: Sweeps, recorded_sweep: str) -> None:
    everything = [sweeps.store, *sweeps.store.rglob("*")]
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in everything}
    for path in everything:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        status = sweeps.launch("status")
        assert "8 cells: 4 queued, 1 running, 3 done, 0 failed" in status.stdout, status.stderr
        all_sweeps = sweeps.launch("status", "--all").stdout.splitlines()
        assert all_sweeps[2].split()[0] == recorded_sweep
        logs = sweeps.launch("logs", CELLS[3].id)
        assert "a library complains" in logs.stdout, logs.stderr
        assert "of something else" not in logs.stdout
        assert f"{CELLS[3].id} has no record yet" in logs.stdout
    finally:
        for path in everything:
            path.chmod(path.stat().st_mode | 0o200)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sweeps.store.rglob("*")} == {
        path: seen for path, seen in before.items() if path != sweeps.store
    }


def test_watching_ends_with_the_sweep(sweeps: Sweeps, recorded_sweep: str) -> None:
    watching = sweeps.program("-m", "launch", "status", "--watch", "--sweep", recorded_sweep[:6])
    store = Store.open(sweeps.store)
    for cell in CELLS[3:]:
        assert watching.poll() is None
        store.save(made.record(cell))
    shown, told = watching.communicate(timeout=120)
    assert watching.returncode == 0, told
    assert "8 cells: 0 queued, 0 running, 8 done, 0 failed" in shown
    assert "ended" in shown


def test_a_terminal_is_shown_the_table_in_place_while_other_processes_run(sweeps: Sweeps, recorded_sweep: str) -> None:
    program = (
        "import sys\n"
        "from launch.monitor.live_table import Foreground\n"
        "from launch.monitor.sweep_state import SweepReader\n"
        "from mmq_sweeps.store.store import Store\n"
        "from tests.launch import cells as made\n"
        "store = Store.open('runs')\n"
        "with Foreground(SweepReader(store, sys.argv[1])) as shown:\n"
        "    shown.say('a worker died')\n"
        "    for cell in made.grid(2, 3)[3:]:\n"
        "        store.save(made.record(cell))\n"
        "    shown()\n"
    )
    shown = on_a_terminal("-c", [program, recorded_sweep], sweeps.folder)
    assert "8 cells: 4 queued, 1 running, 3 done, 0 failed" in shown
    assert "a worker died" in shown
    assert "8 cells: 0 queued, 0 running, 8 done, 0 failed" in shown
    assert "\x1b[" in shown
    assert "8 cells: 0 queued, 0 running, 8 done" in on_a_terminal("launch", ["status", "--watch"], sweeps.folder)


def test_ctrl_c_ends_watching_and_nothing_else(sweeps: Sweeps, recorded_sweep: str) -> None:

    watching = sweeps.program("-u", "-m", "launch", "status", "--watch", "--sweep", recorded_sweep)
    assert watching.stdout is not None
    assert recorded_sweep in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    told = watching.communicate(timeout=120)[1]
    assert watching.returncode == 130
    assert told == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "--store", "absent"], "is no store"),
        (["status", "--sweep", "zzz"], "sweep zzz: unknown. Choose of "),
        (["logs", "zzz"], "cell zzz: unknown in "),
        (["logs", ""], "cell : fits 8. Choose of "),
        (["cancel", "--sweep", "zzz"], "sweep zzz: unknown"),
        (["retry", "--sweep", "zzz"], "sweep zzz: unknown"),
        (["stats"], "invalid choice: 'stats'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_names_the_choices(
    sweeps: Sweeps,
    recorded_sweep: str,  # noqa: ARG001
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from launch.__main__ import main

    monkeypatch.chdir(sweeps.folder)
    monkeypatch.setattr("sys.argv", ["launch", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_latest_sweep_is_meant_where_none_is_named(sweeps: Sweeps, recorded_sweep: str) -> None:
    store = Store.reading(sweeps.store)
    assert sweeps.status()["sweep"] == recorded_sweep
    later = launched(Store.open(sweeps.store), made.sweep(CELLS[:3]))
    assert sweeps.status()["sweep"] == later
    assert recorded.listed(store.root) == [later, recorded_sweep]
