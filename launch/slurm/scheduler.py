"""SLURM's commands: what the cluster has, what is queued, submitting again where it was busy, and taking jobs off.

Nothing here imports Submitit, torch or Hydra. Everything goes through the commands that a login node has.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from mmq_sweeps.errors import ConfigError, unknown

Result = TypeVar("Result")

COMMAND_SECONDS = 60
# What a job name or an id list may take of a command line.
IDS_A_COMMAND = 500
# SLURM's own default, where scontrol does not say.
MAX_ARRAY_SIZE = 1001
# Waits between attempts at a command that failed because the cluster was busy or away: seconds.
BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# What sbatch says of requests that will not come true by asking again (SLURM's src/common/slurm_errno.c). Everything else
# may be a busy or restarting controller.
REFUSED = (
    "invalid", "unrecognized", "not permitted", "permission denied", "not available", "violates", "not supported",
    "access/permission", "no partition specified", "unable to open file",
)  # fmt: skip
# The states in which a job is on its way out and its base state is no longer told.
ENDING = ("COMPLETING", "CANCELLED", "PREEMPTED", "TIMEOUT", "NODE_FAIL", "FAILED", "COMPLETED")


class ClusterError(OSError):
    """A command of SLURM failed; the message is what it wrote."""


@dataclass(frozen=True, order=True)
class JobId:
    """A job as SLURM's commands must be given it: ``44_1`` for a task of an array, ``44`` for a job of its own.

    ``SLURM_JOB_ID`` is no name for a task: one task of every array has the array's own number, and a command that is given
    that number prints, requeues or cancels all tasks.
    """

    number: int
    task: int | None = None

    @staticmethod
    def parse(text: str) -> JobId:
        """``JobId(44, 1)`` of ``44_1``; a ``ValueError`` for anything else than a job or one task."""
        number, underscore, task = text.partition("_")
        return JobId(int(number), int(task) if underscore else None)

    @staticmethod
    def here(environment: Mapping[str, str] = os.environ) -> JobId | None:
        """The job that this process runs in, ``None`` outside of any."""
        if "SLURM_JOB_ID" not in environment:
            return None
        array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
        return JobId(int(array), int(task)) if array and task else JobId(int(environment["SLURM_JOB_ID"]))

    def __str__(self) -> str:
        return f"{self.number}" if self.task is None else f"{self.number}_{self.task}"


@dataclass(frozen=True)
class Job:
    """A job as ``scontrol`` tells of it. ``restarts`` counts how often it went back to the queue."""

    state: str
    restarts: int
    preempted: bool
    seconds_left: float | None
    seconds_over: float | None

    @property
    def ending(self) -> bool:
        return self.state in ENDING

    def cancelled(self, restarts: int) -> bool:
        """Whether a person took it off, as seen by its run number ``restarts``: it ends, and neither the queue, nor a
        job of a higher partition, nor the time limit is why."""
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
        """``pending (Resources)``, or ``running``."""
        why = f" ({self.reason})" if self.state == "PENDING" and self.reason not in ("None", "") else ""
        return f"{self.state.lower()}{why}"


def require() -> None:
    """A ``ConfigError`` where this machine has no SLURM to submit to."""
    for program in ("sbatch", "srun", "scontrol"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"hydra/launcher=slurm: this machine has no {program}; run the command on a login node of the cluster, "
                "or choose hydra/launcher=local."
            )


def run(*command: str) -> str:
    """Standard output of one of SLURM's commands; a ``ClusterError`` with its standard error where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]} did not answer for {COMMAND_SECONDS} s") from None
    except OSError as error:
        raise ClusterError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise ClusterError(f"{command[0]}: {_told(done.stderr) or _told(done.stdout) or f'exit {done.returncode}'}")
    return done.stdout


def patiently(
    attempt: Callable[[], Result], say: Callable[[str], None], waits: Iterable[float] = BACKOFF_SECONDS
) -> Result:
    """The result of ``attempt``, tried again after each of ``waits`` while the cluster is busy or away.

    What it says that another attempt would not change, and the last failure, are raised.
    """
    for wait in waits:
        try:
            return attempt()
        except ClusterError as error:
            if refused(str(error)):
                raise
            say(f"{error}; trying again in {wait:.0f} s")
            time.sleep(wait)
    return attempt()


def refused(message: str) -> bool:
    """Whether the cluster has said no, rather than nothing of use."""
    return any(words in message.lower() for words in REFUSED)


def problems(asked: Mapping[str, str | None]) -> list[str]:
    """What of ``asked`` (partition, account, qos, constraint) this cluster does not have, with the choices.

    A cluster without accounting cannot be asked for accounts and qualities of service; sbatch has the last word there.
    """
    choices: dict[str, Callable[[], list[str]]] = {"partition": _partitions, "account": _accounts, "qos": _qualities}
    found = []
    for key, names in choices.items():
        if asked.get(key) is None:
            continue
        known = names()
        # sbatch takes several partitions at once, and uses the one that is free first.
        values = str(asked[key]).split(",") if key == "partition" else [str(asked[key])]
        found += [
            f"hydra.launcher.{key}={one}: {unknown(key, one, known)}" for one in values if known and one not in known
        ]
    if asked.get("constraint") is not None:
        features = _features()
        # Features are joined by &, |, [], () and counts such as *4; what is left are their names.
        for name in re.findall(r"[A-Za-z_][\w.\-]*", str(asked["constraint"])):
            if features and name not in features:
                found.append(f"hydra.launcher.constraint={asked['constraint']}: {unknown('feature', name, features)}")
    return found


def would_take(flags: Iterable[str]) -> str | None:
    """What sbatch has against a job with ``flags``, without submitting one; ``None`` where nothing."""
    try:
        run("sbatch", "--test-only", *flags, "--wrap=true")
    except ClusterError as error:
        return str(error).removeprefix("sbatch: ")
    return None


def max_array_size() -> int:
    """How many tasks an array may have: their indices are below ``MaxArraySize``."""
    return _setting("MaxArraySize", MAX_ARRAY_SIZE)


def kill_wait_seconds() -> int:
    """How long a job has between the signal that ends it and being killed."""
    return _setting("KillWait", 30)


def submit_limit(account: str | None, qos: str | None) -> int | None:
    """How many more jobs the user may have in the queue by the limits of user, account and quality of service."""
    user = getpass.getuser()
    try:
        of_user = _rows("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=account,maxsubmitjobs,defaultqos")
        of_quality = dict(_rows("sacctmgr", "-nP", "show", "qos", "format=name,maxsubmitjobsperuser"))
    except ClusterError:
        return None
    default = next((row[2] for row in of_user if row[2] and account in (None, row[0])), "")
    limits = [row[1] for row in of_user if account in (None, row[0])] + [of_quality.get(qos or default, "")]
    numbers = [int(limit) for limit in limits if limit.isdigit()]
    if not numbers:
        return None
    queued = run("squeue", "-h", "-r", f"--user={user}", "-o", "%i").split()
    return max(0, min(numbers) - len(queued))


def queued(name: str) -> dict[JobId, Queued]:
    """Jobs called ``name`` that have not ended, whoever submitted them; tasks of an array one by one."""
    rows = _rows("squeue", "-h", "-r", f"--name={name}", "-o", "%i|%T|%r", width=3)
    found = [Queued(JobId.parse(job), state, reason) for job, state, reason in rows]
    return {one.job: one for one in found}


def ended_as(jobs: Iterable[JobId]) -> dict[JobId, str]:
    """How ``jobs`` ended by the cluster's accounting (``FAILED, exit status 7``); empty where it keeps none."""
    asked = sorted(jobs)
    if not asked:
        return {}
    try:
        rows = _rows("sacct", "-nPX", "--format=JobID,State,ExitCode", f"--jobs={','.join(map(str, asked))}", width=3)
    except ClusterError:
        return {}
    return {job: _how_ended(state, code) for job in asked for name, state, code in rows if name == str(job)}


def _how_ended(state: str, code: str) -> str:
    """``code`` is sacct's ``STATUS:SIGNAL``."""
    status, _, signal = code.partition(":")
    # "CANCELLED by 1000"
    told = state.split()[0] if state else "UNKNOWN"
    if signal not in ("", "0"):
        return f"{told}, signal {signal}"
    return told if status in ("", "0") else f"{told}, exit status {status}"


def commented(comment: str) -> list[int]:
    """Numbers of the user's jobs that were submitted with ``comment``: an array is one."""
    rows = _rows("squeue", "-h", f"--user={getpass.getuser()}", "-o", "%F|%k", width=2)
    return sorted({int(job) for job, told in rows if told == comment})


def job(job_id: JobId) -> Job:
    """What the controller knows of one job; a ``ClusterError`` where it knows of none, or tells of others as well."""
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
        # Told and measured by the controller's clock and this node's, which may differ by seconds.
        seconds_left=(end - datetime.now()).total_seconds() if end else None,
        seconds_over=over,
    )


def _is_of(fields: Mapping[str, str], job_id: JobId) -> bool:
    """Whether ``fields`` of scontrol are those of this job, and not of another task of its array."""
    if job_id.task is None:
        return fields.get("JobId") == str(job_id)
    return (fields.get("ArrayJobId"), fields.get("ArrayTaskId")) == (str(job_id.number), str(job_id.task))


def requeue(job_id: JobId) -> None:
    """Put a job back into the queue; if it runs, SLURM ends it for that. Other tasks of its array are left alone."""
    run("scontrol", "requeue", str(job_id))


def cancel(jobs: Iterable[JobId]) -> None:
    """Take ``jobs`` off the queue, or end them where they run; those that have ended already are let be."""
    asked = {str(job) for job in jobs}
    if not asked:
        return
    there = set(run("squeue", "-h", "-r", f"--user={getpass.getuser()}", "-o", "%i").split())
    ids = sorted(asked & there)
    for first in range(0, len(ids), IDS_A_COMMAND):
        # Quiet: a job that ended since squeue told of it is no error.
        run("scancel", "--quiet", *ids[first : first + IDS_A_COMMAND])


def cancel_arrays(arrays: Iterable[int]) -> None:
    """End whole arrays with all their tasks, or single jobs, by number."""
    if numbers := sorted(arrays):
        run("scancel", "--quiet", *map(str, numbers))


def minutes(time_limit: object) -> int:
    """A time limit as SLURM writes them (``90``, ``1:30:00``, ``2-12``, ``2-12:30:00``) in whole minutes, upwards.

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


def _setting(name: str, otherwise: int) -> int:
    found = re.search(rf"^{name}\s*=\s*(\d+)", run("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else otherwise


def _partitions() -> list[str]:
    return sorted(set(run("sinfo", "-h", "-a", "-o", "%R").split()))


def _features() -> list[str]:
    told = run("sinfo", "-h", "-a", "-o", "%f").split()
    return sorted({name for features in told for name in features.split(",") if name != "(null)"})


def _accounts() -> list[str]:
    return _of_user("account")


def _qualities() -> list[str]:
    return sorted({name for names in _of_user("qos") for name in names.split(",")})


def _of_user(column: str) -> list[str]:
    """A column of the user's associations; empty where the cluster keeps no accounts."""
    try:
        told = run("sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", f"format={column}")
    except ClusterError:
        return []
    return sorted({line for line in told.splitlines() if line})


def _rows(*command: str, width: int | None = None) -> list[list[str]]:
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
    """``days-hours:minutes:seconds`` with what sbatch allows to be left out, in seconds; ``None`` for anything else."""
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
