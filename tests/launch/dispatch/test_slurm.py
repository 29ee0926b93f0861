"""SLURM's queue is read and understood before any job is submitted."""

from __future__ import annotations

import pytest

from launch.dispatch import slurm
from launch.slurm import scheduler
from launch.slurm.scheduler import JobId, Queued


def queue_of(monkeypatch: pytest.MonkeyPatch, *looks: dict[str, str]) -> list[dict[JobId, Queued]]:
    """Make the queue answer ``looks``, job to state, in turn; the last look repeats."""
    left = [{JobId.parse(job): Queued(JobId.parse(job), state, "") for job, state in one.items()} for one in looks]
    monkeypatch.setattr(scheduler, "queued", lambda name: left.pop(0) if len(left) > 1 else left[0])
    monkeypatch.setattr(slurm, "ENDING_POLL_SECONDS", 0.0)
    return left


def test_a_job_that_is_ending_is_waited_for_and_one_that_goes_back_to_the_queue_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = queue_of(
        monkeypatch,
        {"7_0": "COMPLETING", "7_1": "COMPLETING", "8": "RUNNING"},
        {"7_0": "COMPLETING", "7_1": "PENDING", "8": "COMPLETING"},
        {"7_1": "PENDING"},
    )
    assert slurm._queued("mmq-x") == {JobId(7, 1)}
    assert len(left) == 1


def test_a_job_that_never_ends_is_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    queue_of(monkeypatch, {"7_0": "COMPLETING", "8": "RUNNING"})
    monkeypatch.setattr(slurm, "ENDING_SECONDS", 0.01)
    assert slurm._queued("mmq-x") == {JobId(8)}
