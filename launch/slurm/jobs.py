"""The SLURM jobs of a sweep: which were submitted, what the queue says of them, and the last lines of those that failed."""

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

# Between two questions to the controller, which all users share: seconds.
QUEUE_SECONDS = 5.0
# Of a log, the last lines that are quoted; of jobs that failed alike, how many are named.
QUOTED_LINES, NAMED_JOBS = 6, 3
# Jobs whose logs are read: what a node or a setup line does wrong is the same in all of them.
READ_JOBS = 20
SUBMITITS = "submitit INFO"


@dataclass(frozen=True)
class Submitted:
    """A job as the store noted it when it was submitted; ``folder`` is where SLURM writes its logs."""

    id: JobId
    cells: tuple[str, ...]
    submitted: str
    folder: Path

    def log(self) -> tuple[Path | None, tuple[str, ...]]:
        """The log that says more, standard error first, and its last lines; ``None`` if the job has written nothing."""
        for stream in ("err", "out"):
            # As Submitit names them: the 0 is the only task of srun.
            path = self.folder / f"{self.id}_0_log.{stream}"
            if lines := last_lines(path):
                return path, lines
        return None, ()


@dataclass(frozen=True)
class Ended:
    """A job that has ended though ``missing`` of its cells have not; ``how`` it ended is empty where nobody knows."""

    id: JobId
    how: str
    missing: int
    folder: Path
    log: Path | None
    last_lines: tuple[str, ...]


@dataclass(frozen=True)
class Jobs:
    """A sweep's jobs at one moment. ``unknown`` says why the queue could not be asked."""

    queued: tuple[Queued, ...] = ()
    failed: tuple[Ended, ...] = ()
    unknown: str | None = None

    @property
    def gone(self) -> bool:
        """Whether the queue has none of them any more."""
        return self.unknown is None and not self.queued

    def summary(self) -> str:
        """``2 pending (Resources), 1 running``."""
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
    """Asks SLURM for the jobs of a sweep, at most every ``QUEUE_SECONDS``, however often it is called."""

    store: Store
    sweep_id: str
    _asked: float = float("-inf")
    _known: frozenset[JobId] = frozenset()
    _queued: tuple[Queued, ...] = ()
    _unknown: str | None = None
    _ended: dict[JobId, Ended] = field(default_factory=dict)

    def __call__(self, left: Collection[str]) -> Jobs:
        """The jobs now; ``left`` are the cells that have not ended and that no worker is at."""
        jobs = submitted(self.store, self.sweep_id)
        if not jobs:
            return Jobs()
        ours = {job.id for job in jobs}
        # A job that was submitted since the last question is in the queue, and not in the answer.
        if time.monotonic() - self._asked >= QUEUE_SECONDS or not ours <= self._known:
            self._ask(ours)
        if self._unknown is not None:
            return Jobs(unknown=self._unknown)
        there = {one.job for one in self._queued}
        # A cell may have been submitted again: only its latest job counts.
        latest = {cell: job.id for job in jobs for cell in job.cells}
        lost = {job.id: sum(latest[cell] == job.id for cell in job.cells if cell in left) for job in jobs}
        return Jobs(self._queued, self._failed([job for job in jobs if job.id not in there and lost[job.id]], lost))

    def _ask(self, ours: Collection[JobId]) -> None:
        try:
            found = scheduler.queued(job_name(self.sweep_id))
            # Another store may have a sweep of the same cells.
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
    """What the jobs of a sweep are called in the queue."""
    return f"mmq-{sweep_id}"


def submitted(store: Store, sweep_id: str) -> list[Submitted]:
    """Every job that was submitted for a sweep, the oldest first; one that was noted half counts as none."""
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
    """Note a job in the store, for ``submitted``."""
    told = {
        "scheduler": "slurm", "job": str(job.id), "cells": list(job.cells), "submitted": job.submitted,
        "folder": str(job.folder),
    }  # fmt: skip
    store.note(f"sweeps/{sweep_id}/jobs/{job.id}.json", told, durable=False)


def told(failed: Iterable[Ended]) -> list[str]:
    """Lines on jobs that failed, those that wrote the same together: which, how they ended, their last lines and the log."""
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
    """The last lines of a log with something on them, without Submitit's own; empty if there is none."""
    try:
        with path.open("rb") as file:
            # A log may be long, its end is not.
            file.seek(max(0, path.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith(SUBMITITS)]
    return tuple(lines[-QUOTED_LINES:])
