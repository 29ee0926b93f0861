"""The reaction of a SLURM job to a signal; SLURM's own answers are made up here, and real in tests/launch/slurm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.slurm import scheduler
from launch.slurm.scheduler import JobId
from launch.workers import pool, slurm_job
from launch.workers.slurm_job import Job, Supervisor, Unfinished
from launch.workers.stop import Stop
from launch.workers.worker import FINISHED, STOPPED
from mmq_sweeps.store.store import Store
from tests.launch import cells as made
from tests.launch.stores import launched

CELLS = made.grid(2, 3)
REQUEUES = 2


class Ended:
    """A job whose workers have ended, with all cells left or no cell left."""

    def __init__(self, supervisor: Supervisor, requeued: list[JobId]) -> None:
        self.supervisor, self.requeued = supervisor, requeued

    def conclude(self) -> str:
        return self.supervisor.conclude()


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    store = Store.open(tmp_path / "runs")
    sweep_id = launched(store, made.sweep(CELLS))
    requeued: list[JobId] = []
    monkeypatch.setattr(scheduler, "requeue", requeued.append)
    monkeypatch.setattr(scheduler, "kill_wait_seconds", lambda: 30.0)
    monkeypatch.setattr(slurm_job, "REQUEUE_SECONDS", 0)
    # The task with the array's own id, which every array has.
    for name, value in {"JOB_ID": "44", "ARRAY_JOB_ID": "44", "ARRAY_TASK_ID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)

    def end(before: int = 0, signal: str | None = "SIGTERM", done: bool = False, **told: object) -> Ended:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(before))
        state = {
            "state": "RUNNING",
            "restarts": before,
            "preempted": False,
            "seconds_left": 60.0,
            "seconds_over": None,
        }
        monkeypatch.setattr(scheduler, "job", lambda _: scheduler.Job(**{**state, **told}))  # type: ignore[arg-type]
        stop = Stop()
        if signal is not None:
            stop.ask(signal)
        for cell in CELLS if done else []:
            store.save(made.record(cell))
        of = Job(str(store.root), sweep_id, tuple(cell.id for cell in CELLS), 1, 1, REQUEUES, 120)
        return Ended(Supervisor(of, stop), requeued)

    return end


@pytest.mark.parametrize(
    ("before", "told", "goes_back", "says"),
    [
        (0, {}, True, "put back into the queue"),
        (REQUEUES - 1, {}, True, "put back into the queue"),
        (REQUEUES, {}, False, "not put back into the queue: that was done 2 times, hydra.launcher.requeues"),
        (0, {"state": "COMPLETING", "preempted": True}, True, "put back into the queue"),
        (0, {"state": "COMPLETING", "restarts": 1}, False, "SLURM has put the job back into the queue"),
        (0, {"state": "COMPLETING", "seconds_over": -60.0}, False, "cancelled by hand: not put back into the queue"),
    ],
)
def test_a_job_that_was_signalled_goes_back_to_the_queue_unless_there_is_a_reason(
    ended: Callable[..., Ended],
    capsys: pytest.CaptureFixture[str],
    before: int,
    told: dict[str, object],
    goes_back: bool,
    says: str,
) -> None:
    one = ended(before, **told)
    assert one.conclude() == STOPPED
    assert one.requeued == [JobId(44, 1)] * goes_back
    assert says in capsys.readouterr().out


def test_a_job_whose_cells_are_done_is_finished_though_it_was_signalled(ended: Callable[..., Ended]) -> None:
    one = ended(done=True)
    assert one.conclude() == FINISHED
    assert one.requeued == []


def test_cells_that_are_left_without_a_reason_are_a_failure(ended: Callable[..., Ended]) -> None:
    with pytest.raises(
        Unfinished, match=f"{len(CELLS)} of {len(CELLS)} cells are left; the same command again submits"
    ):
        ended(signal=None).conclude()


def test_what_was_said_of_the_last_worker_is_why_cells_are_left(
    ended: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ended(signal=None)
    monkeypatch.setattr(pool, "run", lambda *_: "worker a could not run: error: no such disk")
    one.supervisor.work()
    with pytest.raises(
        Unfinished, match=r"cells are left \(worker a could not run: error: no such disk\); the same command"
    ):
        one.conclude()


@pytest.mark.parametrize(
    ("before", "requeued", "says"),
    [
        (REQUEUES - 1, [JobId(44, 1)], "put back into the queue"),
        (REQUEUES, [], "not put back into the queue: that was done 2 times, hydra.launcher.requeues"),
    ],
)
def test_a_controller_that_does_not_answer_keeps_nothing_from_the_queue_but_the_limit(
    ended: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    before: int,
    requeued: list[JobId],
    says: str,
) -> None:
    one = ended(before)

    def silent(_: str) -> scheduler.Job:
        raise scheduler.ClusterError("scontrol: Unable to contact slurm controller")

    monkeypatch.setattr(scheduler, "job", silent)
    assert one.conclude() == STOPPED
    assert one.requeued == requeued
    output = capsys.readouterr().out
    assert "Unable to contact slurm controller; taken for a job that was interrupted, not cancelled" in output
    assert output.splitlines()[-1].endswith(f" {says}")
