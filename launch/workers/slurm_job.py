"""What runs as a SLURM job: a supervisor of the workers that run the job's cells, and of the job's way back to the queue.

It is light and never busy, so that it hears at once what SLURM says. TERM comes before a job of a higher partition takes
the place, USR2 ``signal_seconds`` before the time is over. Either asks the workers to stop after the cell at hand, which
they record, and puts the job back into the queue, where it goes on with the cells that are left. A cell that takes longer
than the job is given is ended and run again then. Only a job that a person cancelled stays ended.
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
from mmq_sweeps.store.claims import missing
from mmq_sweeps.store.store import Store

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
# Left of the time that SLURM gives, for ending workers and asking to be queued again: seconds, and a share of it.
MARGIN_SECONDS, MARGIN_SHARE = 15.0, 0.4
# How long a job that has asked to be queued again waits for SLURM to end it.
REQUEUE_SECONDS = 60


class Unfinished(RuntimeError):
    """Workers ended without being asked to, and cells are left: the job has failed, and SLURM is to say so."""


class OutOfTime(BaseException):
    """The time to end the cells at hand is over. Not an ``Exception``: nothing on its way may take it for a failed cell."""


@dataclass(frozen=True)
class Job:
    """The cells of one job, as Submitit pickles them: plain values, so that nothing else of ours is in the pickle."""

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
        """Run the cells that are left; ``finished`` or ``stopped``. A job that goes back to the queue does not return.

        Raises ``Unfinished`` where cells are left that nothing kept from running.
        """
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
        stop = Stop()
        with stop.on(*SIGNALS):
            supervisor = Supervisor(self, stop)
            with supervisor.timed():
                supervisor.work()
            return supervisor.conclude()

    def checkpoint(self) -> DelayedSubmission:
        """For Submitit, which answers the signals until ``__call__`` does: what is done is in the store."""
        return DelayedSubmission(self)


class Supervisor:
    """Runs the cells of ``job`` and decides what a signal means."""

    def __init__(self, job: Job, stop: Stop) -> None:
        self._job, self._stop = job, stop
        here = JobId.here()
        if here is None:
            raise RuntimeError("SLURM_JOB_ID is not set: this runs inside a SLURM job only")
        self._id = here
        self._restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self._started = sweep_file.read(Path(job.store), job.sweep)
        self._store = Store.of({**self._started.sweep.settings["store"], "dir": job.store}, say=_say)
        self._back_to_queue: bool | None = None
        # The last that was said of a worker, which is why cells are left if nothing else is.
        self._heard = ""

    def work(self) -> None:
        """Returns when the workers have ended, by themselves or because the job has to."""
        left = self._left()
        _say(f"{len(left)} of {len(self._job.cells)} cells are left; put back into the queue {self._restarts} times")
        own = replace(self._started, batches=tuple((cell,) for cell in left))
        try:
            if left:
                pool.run(self._store, own, self._job.workers, self._hear, self._look)
        except KeyboardInterrupt:
            _say(f"stopped by {self._stop.reason}")
        except OutOfTime:
            _say(f"stopped by {self._stop.reason}; a cell took longer than there was time, and runs again")

    def conclude(self) -> str:
        """What the job comes to, once no worker runs any more."""
        left = self._left()
        _say(f"{len(self._job.cells) - len(left)} of {len(self._job.cells)} cells are done")
        if not left:
            return FINISHED
        if self._stop.reason is None:
            because = f" ({self._heard})" if self._heard else ""
            raise Unfinished(
                f"{len(left)} of {len(self._job.cells)} cells are left{because}; the same command again submits them"
            )
        if self._back_to_queue is None:
            self._decide()
        if self._back_to_queue:
            self._requeue()
            # SLURM ends this process; exiting by itself first would look like the end of the job.
            time.sleep(REQUEUE_SECONDS)
        return STOPPED

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Inside, the timer that ``_look`` sets raises ``OutOfTime``."""

        def over(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, over)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _look(self) -> None:
        """Called again and again while workers run: once a signal has come, see how long there is, and stop them."""
        if self._stop.reason is not None and self._back_to_queue is None:
            seconds = self._decide()
            _say(f"{self._stop.reason}: stopping after the cells at hand, in at most {seconds:.0f} s")
            signal.setitimer(signal.ITIMER_REAL, seconds)
            raise KeyboardInterrupt

    def _decide(self) -> float:
        """Whether the job goes back to the queue, and how many seconds its workers have."""
        self._back_to_queue = True
        try:
            told = scheduler.job(self._id)
        except ClusterError as error:
            _say(f"{error}; taken for a job that goes back to the queue")
            return _within(self._seconds_by_signal())
        if told.cancelled(self._restarts):
            _say("cancelled by hand: not put back into the queue")
            self._back_to_queue = False
        elif told.restarts > self._restarts:
            _say("SLURM has put the job back into the queue")
            self._back_to_queue = False
        elif self._restarts >= self._job.requeues:
            _say(f"not put back into the queue: that was done {self._restarts} times, hydra.launcher.requeues")
            self._back_to_queue = False
        elif told.ending:
            # It is being ended already, so that asking now takes no time from the workers.
            self._requeue()
            self._back_to_queue = False
        if told.ending:
            return _within(scheduler.kill_wait_seconds())
        if self._stop.reason == signal.SIGUSR2.name or told.seconds_left is None:
            return _within(self._seconds_by_signal())
        return _within(told.seconds_left)

    def _hear(self, text: str) -> None:
        self._heard = text
        _say(text)

    def _seconds_by_signal(self) -> float:
        """What there is before SLURM kills, by which signal came, where it does not say."""
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
    """What of ``seconds`` workers may have."""
    return max(1.0, seconds - min(MARGIN_SECONDS, MARGIN_SHARE * seconds))


def _say(text: str) -> None:
    """To the job's own log, among Submitit's lines."""
    sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stdout.flush()
