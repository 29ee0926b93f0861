"""Wrap SLURM's commands: query the cluster and the queue, retry if the controller is busy, requeue and cancel jobs.

Uses the commands of a login node only; imports neither Submitit, torch nor Hydra.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

COMMAND_SECONDS = 60
# Job ids passed to a single command, to stay within the command line's length limit.
IDS_A_COMMAND = 500
# Seconds between retries while the cluster is busy or away.
BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# sbatch's messages on permanent rejections (SLURM's src/common/slurm_errno.c). Any other error may be due to a busy or
# restarting controller.
REFUSED = (
    "invalid", "unrecognized", "not permitted", "permission denied", "not available", "violates", "not supported",
    "access/permission", "no partition specified", "unable to open file",
)  # fmt: skip
# States of an ending job, which hide its base state.
ENDING = ("COMPLETING", "CANCELLED", "PREEMPTED", "TIMEOUT", "NODE_FAIL", "FAILED", "COMPLETED")


class ClusterError(OSError):
    """A failed SLURM command; the message is the command's output."""


@dataclass(frozen=True, order=True)
class JobId:
    """A job id as SLURM's commands take it: ``44_1`` for an array task, ``44`` for a single job.

    ``SLURM_JOB_ID`` does not identify a task: each array has a task whose id is the array's own number, and a command
    given that number prints, requeues or cancels all tasks.
    """

    number: int
    task: int | None = None

    @staticmethod
    def parse(text: str) -> JobId:
        """Parse ``44_1`` as ``JobId(44, 1)``; raise a ``ValueError`` unless ``text`` is a job or a single task."""
        number, underscore, task = text.partition("_")
        return JobId(int(number), int(task) if underscore else None)

    @staticmethod
    def here(environment: Mapping[str, str] = os.environ) -> JobId | None:
        """Return the job that this process runs in, or None outside of a job."""
        if "SLURM_JOB_ID" not in environment:
            return None
        array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
        return JobId(int(array), int(task)) if array and task else JobId(int(environment["SLURM_JOB_ID"]))

    def __str__(self) -> str:
        return f"{self.number}" if self.task is None else f"{self.number}_{self.task}"


@dataclass(frozen=True)
class Job:
    """A job as reported by ``scontrol``. ``restarts`` counts how often it was requeued."""

    state: str
    restarts: int
    preempted: bool
    seconds_left: float | None
    seconds_over: float | None

    @property
    def ending(self) -> bool:
        return self.state in ENDING

    def cancelled(self, restarts: int) -> bool:
        """Return True if a person cancelled run number ``restarts`` of the job.

        The job is ending, and it was neither requeued nor preempted, nor did it reach its time limit or lose its node.
        """
        if not self.ending or self.state in ("PREEMPTED", "TIMEOUT", "NODE_FAIL"):
            return False
        timed_out = self.seconds_over is not None and self.seconds_over >= 0
        return self.restarts == restarts and not self.preempted and not timed_out


@dataclass(frozen=True)
class Queued:
    """A job that has not ended; ``reason`` is why it waits."""

    job: JobId
    state: str
    reason: str

    @property
    def label(self) -> str:
        """State of the job: ``pending (Resources)``, or ``running``."""
        why = f" ({self.reason})" if self.state == "PENDING" and self.reason not in ("None", "") else ""
        return f"{self.state.lower()}{why}"

    @property
    def ending(self) -> bool:
        """True if the job, which was cancelled or has run, is about to leave the queue or to be put back into it."""
        return self.state in ENDING


def run(*command: str) -> str:
    """Run a SLURM command and return its standard output; raise a ``ClusterError`` with its standard error if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]} did not answer for {COMMAND_SECONDS} s") from None
    except OSError as error:
        raise ClusterError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise ClusterError(f"{command[0]}: {_told(done.stderr) or _told(done.stdout) or f'exit {done.returncode}'}")
    return done.stdout


def patiently(attempt: Callable[[], Result], waits: Iterable[float] = BACKOFF_SECONDS) -> Result:
    """Call ``attempt``, retrying after each of ``waits`` seconds while the cluster is busy or away.

    Raises permanent rejections at once, and the error of the last attempt.
    """
    for wait in waits:
        try:
            return attempt()
        except ClusterError as error:
            if refused(str(error)):
                raise
            logger.warning("%s; trying again in %.0f s", error, wait)
            time.sleep(wait)
    return attempt()


def refused(message: str) -> bool:
    """Return True if SLURM rejected the request permanently; other errors are retried."""
    return any(words in message.lower() for words in REFUSED)


def kill_wait_seconds() -> int:
    """Return the seconds between the signal that ends a job and the kill."""
    return setting("KillWait", 30)


def queued(name: str) -> dict[JobId, Queued]:
    """Return unfinished jobs called ``name`` of any user; the tasks of an array are separate jobs."""
    rows = rows_of("squeue", "-h", "-r", f"--name={name}", "-o", "%i|%T|%r", width=3)
    found = [Queued(JobId.parse(job), state, reason) for job, state, reason in rows]
    return {one.job: one for one in found}


def ended_as(jobs: Iterable[JobId]) -> dict[JobId, str]:
    """Return how ``jobs`` ended according to sacct (``FAILED, exit status 7``); empty if the cluster keeps no accounts."""
    asked = sorted(jobs)
    if not asked:
        return {}
    try:
        rows = rows_of("sacct", "-nPX", "--format=JobID,State,ExitCode", f"--jobs={','.join(map(str, asked))}", width=3)
    except ClusterError:
        return {}
    return {job: _how_ended(state, code) for job in asked for name, state, code in rows if name == str(job)}


def _how_ended(state: str, code: str) -> str:
    """Describe an end; ``code`` is sacct's ``STATUS:SIGNAL``."""
    status, _, signal = code.partition(":")
    # "CANCELLED by 1000"
    told = state.split()[0] if state else "UNKNOWN"
    if signal not in ("", "0"):
        return f"{told}, signal {signal}"
    return told if status in ("", "0") else f"{told}, exit status {status}"


def commented(comment: str) -> list[int]:
    """Return numbers of the user's jobs submitted with ``comment``; an array has a single number."""
    rows = rows_of("squeue", "-h", f"--user={getpass.getuser()}", "-o", "%F|%k", width=2)
    return sorted({int(job) for job, told in rows if told == comment})


def job(job_id: JobId) -> Job:
    """Return the controller's state of a job; raise a ``ClusterError`` unless it reports exactly this job."""
    told = run("scontrol", "show", "job", "--oneliner", str(job_id)).splitlines()
    found = [fields for line in told if _is_of(fields := dict(re.findall(r"(\w+)=(\S*)", line)), job_id)]
    if len(found) != 1:
        raise ClusterError(f"scontrol: told of {len(told)} jobs, {len(found)} of them {job_id}")
    (fields,) = found
    end, start = _when(fields.get("EndTime", "")), _when(fields.get("StartTime", ""))
    limit = _duration(fields.get("TimeLimit", ""))
    over = (end - start).total_seconds() - limit if end and start and limit is not None else None
    return Job(
        state=fields.get("JobState", "UNKNOWN"),
        restarts=int(fields.get("Restarts", "0")),
        preempted=_when(fields.get("PreemptTime", "")) is not None,
        # The end is by the controller's clock, now by this node's; they may differ by seconds.
        seconds_left=(end - datetime.now()).total_seconds() if end else None,
        seconds_over=over,
    )


def _is_of(fields: Mapping[str, str], job_id: JobId) -> bool:
    """Return True if ``fields`` of scontrol describe this job, and not another task of its array."""
    if job_id.task is None:
        return fields.get("JobId") == str(job_id)
    return (fields.get("ArrayJobId"), fields.get("ArrayTaskId")) == (str(job_id.number), str(job_id.task))


def requeue(job_id: JobId) -> None:
    """Requeue a job, which ends it if it runs. Other tasks of its array are not affected."""
    run("scontrol", "requeue", str(job_id))


def cancel(jobs: Iterable[JobId]) -> list[str]:
    """Cancel those of ``jobs`` that this user has queued or running, and return their names."""
    asked = {str(job) for job in jobs}
    if not asked:
        return []
    there = set(run("squeue", "-h", "-r", f"--user={getpass.getuser()}", "-o", "%i").split())
    ids = sorted(asked & there)
    for first in range(0, len(ids), IDS_A_COMMAND):
        # Quiet: a job may have ended since squeue listed it.
        run("scancel", "--quiet", *ids[first : first + IDS_A_COMMAND])
    return ids


def cancel_arrays(arrays: Iterable[int]) -> None:
    """Cancel whole arrays, or single jobs, by number."""
    if numbers := sorted(arrays):
        run("scancel", "--quiet", *map(str, numbers))


def minutes(time_limit: object) -> int:
    """Convert a SLURM time limit (``90``, ``1:30:00``, ``2-12``, ``2-12:30:00``) to whole minutes, rounded up.

    Raises a ``ValueError`` for anything else.
    """
    if isinstance(time_limit, int) and not isinstance(time_limit, bool):
        if time_limit < 1:
            raise ValueError(time_limit)
        return time_limit
    seconds = _duration(str(time_limit))
    if not seconds:
        raise ValueError(time_limit)
    return -(-int(seconds) // 60)


def setting(name: str, otherwise: int) -> int:
    found = re.search(rf"^{name}\s*=\s*(\d+)", run("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else otherwise


def rows_of(*command: str, width: int | None = None) -> list[list[str]]:
    rows = [line.split("|") for line in run(*command).splitlines() if line]
    return rows if width is None else [[*row[: width - 1], "|".join(row[width - 1 :])] for row in rows]


def _told(output: str) -> str:
    return " ".join(output.split())


def _when(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None  # "Unknown", "None" or "N/A"


def _duration(text: str) -> float | None:
    """Convert ``days-hours:minutes:seconds``, with the parts that sbatch allows to omit, to seconds; None if malformed."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        return None
    days, *rest = (int(number) if number else None for number in found.groups())
    first, second, third = rest
    if days is not None:
        return days * 86400 + (first or 0) * 3600 + (second or 0) * 60 + (third or 0)
    if third is not None:
        return (first or 0) * 3600 + (second or 0) * 60 + third
    return (first or 0) * 60 + (second or 0)
