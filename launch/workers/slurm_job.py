"""Entry point of a SLURM job: supervise the workers that run its cells, and requeue the job if it is interrupted.

The supervisor does no computation, so that it reacts to signals at once: TERM announces preemption by a job of a higher
partition, USR2 comes ``signal_seconds`` before the time limit. On either, the workers stop after the current cell,
which they record, and the job is requeued to run the remaining cells. A cell that exceeds the remaining time is killed
and run again. Only a job cancelled by a person is not requeued.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from submitit.helpers import DelayedSubmission

from launch import sweep_file
from launch.slurm import scheduler
from launch.slurm.options import Options
from launch.slurm.scheduler import ClusterError, JobId
from launch.workers import pool
from launch.workers.stop import Stop
from launch.workers.worker import FINISHED, STOPPED
from mmq_sweeps.reporting.counts import counted, out_of
from mmq_sweeps.reporting.progress import warnings_to
from mmq_sweeps.store.claims import missing
from mmq_sweeps.store.store import Store

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
# Time reserved for killing workers and requeueing: at most these seconds, and at most this share of the time left.
MARGIN_SECONDS, MARGIN_SHARE = 15.0, 0.4
# Seconds that a requeued job waits for SLURM to end it.
REQUEUE_SECONDS = 60


class Unfinished(RuntimeError):
    """Cells are left although no stop was requested; raised so that SLURM marks the job as failed."""


class OutOfTime(BaseException):
    """The time for ending the current cells is over. A ``BaseException``, so that no handler records it as a failed cell."""


@dataclass(frozen=True)
class Job:
    """Cells and settings of a job, pickled by Submitit: plain values only, so that the pickle holds no other project class."""

    store: str
    sweep: str
    cells: tuple[str, ...]
    workers: int
    threads: int
    requeues: int
    signal_seconds: int

    @staticmethod
    def of(store: Path, sweep: str, cells: Sequence[str], options: Options) -> Job:
        threads = max(1, options.cpus_per_task // options.workers_per_job)
        return Job(
            str(store), sweep, tuple(cells), options.workers_per_job, threads, options.requeues, options.signal_seconds
        )

    def __call__(self) -> str:
        """Run the remaining cells and return ``finished`` or ``stopped``. Does not return if the job is requeued.

        Raises ``Unfinished`` if cells are left although the job was not stopped.
        """
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
        stop = Stop()
        with stop.on(*SIGNALS), warnings_to(_say):
            supervisor = Supervisor(self, stop)
            with supervisor.timed():
                supervisor.work()
            return supervisor.conclude()

    def checkpoint(self) -> DelayedSubmission:
        """Resubmit this job; called by Submitit, which handles signals until ``__call__`` does. Results are in the store."""
        return DelayedSubmission(self)


class Supervisor:
    """Supervisor of the workers of ``job``, which decides how to react to a signal."""

    def __init__(self, job: Job, stop: Stop) -> None:
        self._job, self._stop = job, stop
        here = JobId.here()
        if here is None:
            raise RuntimeError("SLURM_JOB_ID is not set: this runs inside a SLURM job only")
        self._id = here
        self._restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self._started = sweep_file.read(Path(job.store), job.sweep)
        self._store = Store.of({**self._started.sweep.settings["store"], "dir": job.store})
        self._back_to_queue: bool | None = None
        # Last message on a worker that died: the likely reason if cells are left.
        self._heard = ""

    def work(self) -> None:
        """Run the workers; return when they have ended, by themselves or because the job has to stop."""
        left = self._left()
        _say(
            f"{out_of(len(left), len(self._job.cells), 'cell', 'is', 'are')} left; "
            f"put back into the queue {counted(self._restarts, 'time')}"
        )
        own = replace(self._started, batches=tuple((cell,) for cell in left))
        try:
            if left:
                self._heard = pool.run(self._store, own, self._job.workers, self._look)
        except KeyboardInterrupt:
            _say(f"stopped by {self._stop.reason}")
        except OutOfTime:
            _say(f"stopped by {self._stop.reason}; a cell took longer than there was time, and runs again")

    def conclude(self) -> str:
        """Return the outcome of the job after all workers have ended; requeue it if necessary."""
        left = self._left()
        _say(f"{out_of(len(self._job.cells) - len(left), len(self._job.cells), 'cell', 'is', 'are')} done")
        if not left:
            return FINISHED
        if self._stop.reason is None:
            because = f" ({self._heard})" if self._heard else ""
            raise Unfinished(
                f"{out_of(len(left), len(self._job.cells), 'cell', 'is', 'are')} left{because}; "
                "the same command again submits them"
            )
        if self._back_to_queue is None:
            self._decide()
        if self._back_to_queue:
            self._requeue()
            # Wait for SLURM to end this process: exiting first would complete the job.
            time.sleep(REQUEUE_SECONDS)
        return STOPPED

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Raise ``OutOfTime`` inside the context when the timer set by ``_look`` expires."""

        def over(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, over)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _look(self) -> None:
        """Stop the workers after the first signal; called at every poll of the pool."""
        if self._stop.reason is not None and self._back_to_queue is None:
            seconds = self._decide()
            _say(f"{self._stop.reason}: stopping after the cells at hand, in at most {seconds:.0f} s")
            signal.setitimer(signal.ITIMER_REAL, seconds)
            raise KeyboardInterrupt

    def _decide(self) -> float:
        """Decide whether the job is to be requeued, and return the seconds left to its workers."""
        self._back_to_queue = True
        try:
            told = scheduler.job(self._id)
        except ClusterError as error:
            _say(f"{error}; taken for a job that was interrupted, not cancelled")
            self._back_to_queue = self._may_go_back()
            return _within(self._seconds_by_signal())
        if told.cancelled(self._restarts):
            _say("cancelled by hand: not put back into the queue")
            self._back_to_queue = False
        elif told.restarts > self._restarts:
            _say("SLURM has put the job back into the queue")
            self._back_to_queue = False
        elif not self._may_go_back():
            self._back_to_queue = False
        elif told.ending:
            # The job is ending anyway, so requeueing now takes no time from the workers.
            self._requeue()
            self._back_to_queue = False
        if told.ending:
            return _within(scheduler.kill_wait_seconds())
        if self._stop.reason == signal.SIGUSR2.name or told.seconds_left is None:
            return _within(self._seconds_by_signal())
        return _within(told.seconds_left)

    def _may_go_back(self) -> bool:
        """Return True unless the job was requeued as often as ``requeues`` allows, and say so."""
        if self._restarts < self._job.requeues:
            return True
        _say(f"not put back into the queue: that was done {counted(self._restarts, 'time')}, hydra.launcher.requeues")
        return False

    def _seconds_by_signal(self) -> float:
        """Return the seconds before SLURM kills the job, judged by the signal if SLURM does not report them."""
        return self._job.signal_seconds if self._stop.reason == signal.SIGUSR2.name else scheduler.kill_wait_seconds()

    def _requeue(self) -> None:
        try:
            scheduler.requeue(self._id)
            _say("put back into the queue")
        except ClusterError as error:
            _say(f"could not be put back into the queue: {error}; the same command again submits what is left")

    def _left(self) -> list[str]:
        return [cell for cell in self._job.cells if missing(self._store, cell, self._started.redo)]


def _within(seconds: float) -> float:
    """Return the part of ``seconds`` left to workers; the margin is reserved to kill them and requeue the job."""
    return max(1.0, seconds - min(MARGIN_SECONDS, MARGIN_SHARE * seconds))


def _say(text: str) -> None:
    """Write to the job's own log, among Submitit's lines."""
    sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stdout.flush()
