"""Track the SLURM jobs of a sweep: submitted jobs, their state in the queue, and log tails of failed jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.slurm import scheduler
from launch.slurm.scheduler import ClusterError, JobId, Queued
from mmq_sweeps.store.store import Store

# Minimum seconds between two queries of the controller, which all users share.
QUEUE_SECONDS = 5.0
# Log lines quoted, and jobs named, for each group of jobs that failed alike.
QUOTED_LINES, NAMED_JOBS = 6, 3
# Maximum number of logs to read: a broken node or setup line fails all jobs alike.
READ_JOBS = 20
SUBMITITS = "submitit INFO"


@dataclass(frozen=True)
class Submitted:
    """A job as recorded in the store at submission; ``folder`` holds its SLURM logs."""

    id: JobId
    cells: tuple[str, ...]
    submitted: str
    folder: Path

    def log(self) -> tuple[Path | None, tuple[str, ...]]:
        """Return the job's log and its last lines, standard error preferred; None if the job has written nothing."""
        for stream in ("err", "out"):
            # Submitit's file name; 0 is the only task of srun.
            path = self.folder / f"{self.id}_0_log.{stream}"
            if lines := last_lines(path):
                return path, lines
        return None, ()


@dataclass(frozen=True)
class Ended:
    """A job that ended with ``missing`` cells not run; ``how`` it ended is empty if unknown."""

    id: JobId
    how: str
    missing: int
    folder: Path
    log: Path | None
    last_lines: tuple[str, ...]


@dataclass(frozen=True)
class Jobs:
    """A sweep's jobs at a moment; ``unknown`` is the reason if the queue could not be read."""

    queued: tuple[Queued, ...] = ()
    failed: tuple[Ended, ...] = ()
    unknown: str | None = None

    @property
    def gone(self) -> bool:
        """True if the queue is readable and none of the jobs is left in it."""
        return self.unknown is None and not self.queued

    def summary(self) -> str:
        """Return the jobs by state: ``2 pending (Resources), 1 running``."""
        if self.unknown is not None:
            return self.unknown
        counts: dict[str, int] = {}
        for one in self.queued:
            counts[one.label] = counts.get(one.label, 0) + 1
        return ", ".join(f"{count} {label}" for label, count in counts.items()) or "all have ended"

    def as_json(self) -> dict[str, Any]:
        return {
            "queued": [{"job": str(one.job), "state": one.state, "reason": one.reason} for one in self.queued],
            "failed": [
                {
                    "job": str(one.id), "how": one.how, "missing": one.missing,
                    "log": None if one.log is None else str(one.log), "last_lines": list(one.last_lines),
                }
                for one in self.failed
            ],
            "unknown": self.unknown,
        }  # fmt: skip


@dataclass
class Queue:
    """A reader of a sweep's jobs that queries SLURM at most every ``QUEUE_SECONDS``, however often it is called."""

    store: Store
    sweep_id: str
    _asked: float = float("-inf")
    _known: frozenset[JobId] = frozenset()
    _queued: tuple[Queued, ...] = ()
    _unknown: str | None = None
    _ended: dict[JobId, Ended] = field(default_factory=dict)

    def __call__(self, left: Collection[str]) -> Jobs:
        """Return the current jobs; ``left`` are the cells that have not ended and that no worker runs."""
        jobs = submitted(self.store, self.sweep_id)
        if not jobs:
            return Jobs()
        ours = {job.id for job in jobs}
        # A job submitted after the last query is missing from the cached answer.
        if time.monotonic() - self._asked >= QUEUE_SECONDS or not ours <= self._known:
            self._ask(ours)
        if self._unknown is not None:
            return Jobs(unknown=self._unknown)
        there = {one.job for one in self._queued}
        # A resubmitted cell counts for its latest job only.
        latest = {cell: job.id for job in jobs for cell in job.cells}
        lost = {job.id: sum(latest[cell] == job.id for cell in job.cells if cell in left) for job in jobs}
        return Jobs(self._queued, self._failed([job for job in jobs if job.id not in there and lost[job.id]], lost))

    def _ask(self, ours: Collection[JobId]) -> None:
        try:
            found = scheduler.queued(job_name(self.sweep_id))
            # Jobs of a sweep with the same cells in another store have the same name.
            self._queued, self._unknown = tuple(one for job, one in found.items() if job in ours), None
        except ClusterError as error:
            self._unknown = str(error)
        self._asked, self._known = time.monotonic(), frozenset(ours)

    def _failed(self, jobs: Sequence[Submitted], missing: Mapping[JobId, int]) -> tuple[Ended, ...]:
        new = [job for job in jobs[:READ_JOBS] if job.id not in self._ended]
        how = scheduler.ended_as(job.id for job in new)
        for job in new:
            self._ended[job.id] = Ended(job.id, how.get(job.id, ""), missing[job.id], job.folder, *job.log())
        for job in jobs[READ_JOBS:]:
            self._ended.setdefault(job.id, Ended(job.id, "", missing[job.id], job.folder, None, ()))
        return tuple(replace(self._ended[job.id], missing=missing[job.id]) for job in jobs)


def job_name(sweep_id: str) -> str:
    """Return the name of the sweep's jobs in the queue."""
    return f"mmq-{sweep_id}"


def submitted(store: Store, sweep_id: str) -> list[Submitted]:
    """Return every job submitted for a sweep, oldest first; skip incomplete notes."""
    found = []
    for path in (store.root / "sweeps" / sweep_id / "jobs").glob("*.json"):
        try:
            told = json.loads(path.read_text())
            found.append(
                Submitted(JobId.parse(told["job"]), tuple(told["cells"]), told["submitted"], Path(told["folder"]))
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda job: (job.submitted, job.id))


def note(store: Store, sweep_id: str, job: Submitted) -> None:
    """Record a job in the store, to be read by ``submitted``."""
    told = {
        "scheduler": "slurm", "job": str(job.id), "cells": list(job.cells), "submitted": job.submitted,
        "folder": str(job.folder),
    }  # fmt: skip
    store.note(f"sweeps/{sweep_id}/jobs/{job.id}.json", told, durable=False)


def told(failed: Iterable[Ended]) -> list[str]:
    """Describe failed jobs, grouped by how they ended and their last log lines."""
    alike: dict[tuple[str, ...], list[Ended]] = {}
    for one in failed:
        alike.setdefault((one.how, *one.last_lines), []).append(one)
    return [line for jobs in alike.values() for line in _told(jobs)]


def _told(jobs: Sequence[Ended]) -> list[str]:
    first, missing = jobs[0], sum(one.missing for one in jobs)
    names = ", ".join(str(one.id) for one in jobs[:NAMED_JOBS])
    more = f" and {len(jobs) - NAMED_JOBS} more" if len(jobs) > NAMED_JOBS else ""
    how = f" ({first.how})" if first.how else ""
    cells = "1 cell that has not run" if missing == 1 else f"{missing:,} cells that have not run"
    line = f"job{'s' if len(jobs) > 1 else ''} {names}{more} ended{how} with {cells}"
    if first.log is None:
        return [f"{line} and wrote nothing in {first.folder}"]
    return [f"{line}; the end of {first.log}:", *(f"    {text}" for text in first.last_lines)]


def last_lines(path: Path) -> tuple[str, ...]:
    """Return the last non-empty lines of a log, without Submitit's own; empty if there are none."""
    try:
        with path.open("rb") as file:
            # Read only the end, since logs can be long.
            file.seek(max(0, path.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith(SUBMITITS)]
    return tuple(lines[-QUOTED_LINES:])
