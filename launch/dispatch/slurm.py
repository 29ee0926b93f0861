"""``hydra/launcher=slurm``: the cells of a sweep as jobs of a SLURM cluster, through Submitit.

A job is a task of an array and runs some cells (``job.py``). Whoever submits may leave or die: what a job needs lies in
the store, and the same command again submits only what neither the store nor a job in the queue has.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from launch import sweep_file
from launch.monitor.live_table import Foreground
from launch.monitor.sweep_state import SweepReader
from launch.planning.plan import Plan, check_counts
from launch.slurm import jobs, scheduler
from launch.slurm.jobs import Submitted
from launch.slurm.options import Options
from launch.slurm.scheduler import ClusterError, JobId
from launch.workers.heartbeat import now
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.store.store import Store

POLL_SECONDS = 0.2
# A job that ends is out of the queue a moment before its last record is seen on another machine.
SETTLE_SECONDS = 5.0
# Patterns of Submitit's and sbatch's, which would be replaced in the middle of a folder's name.
PATTERNS = ("%", "\\")

Cells = Sequence[str]


def check(launcher: Mapping[str, Any]) -> None:
    """A ``ConfigError`` with all that is wrong with the settings, here and on this cluster, before any work.

    With ``dry_run`` the cluster is not asked, so that a plan can be made on any machine.
    """
    check_counts(launcher)
    options = Options.of(launcher)
    if launcher.get("dry_run"):
        return
    scheduler.require()
    if found := scheduler.patiently(lambda: scheduler.problems(options.asked), _tell):
        raise ConfigError(found)
    objection = scheduler.patiently(lambda: scheduler.would_take(options.flags()), _tell)
    # That too many jobs are queued is seen to when it is known how many more there are to be.
    if objection and "MaxSubmitJob" not in objection:
        raise ConfigError(
            f"hydra/launcher=slurm: sbatch says: {objection}; it was asked for {' '.join(options.flags())}"
        )


def dispatch(plan: Plan, store: Store, sweep_id: str, launcher: Mapping[str, Any]) -> bool:
    """Submit the pending cells of ``plan`` that no job has yet; true where all have ended when this returns."""
    options = Options.of(launcher)
    name = jobs.job_name(sweep_id)
    under_way = _under_way(store, sweep_id, scheduler.patiently(lambda: scheduler.queued(name), _tell))
    groups = _without(plan.batches, under_way)
    if under_way:
        _tell(f"{len(under_way)} cells are in jobs that are queued or running already")
    if groups:
        groups = _within_limit(groups, scheduler.submit_limit(options.account, options.qos))
        Submission(store, sweep_id, name, options).submit(groups)
    if not options.wait:
        _tell(f"not waiting; {_how_to_come_back(store, sweep_id)}")
        return False
    return _wait(store, sweep_id)


class Submission:
    """Puts groups of cells into the queue, as arrays that the cluster takes, and notes in the store which job has what."""

    def __init__(self, store: Store, sweep_id: str, name: str, options: Options) -> None:
        self._store, self._sweep_id, self._name, self._options = store, sweep_id, name, options
        self.folder = (Path(options.folder or f"{store.root}.jobs") / sweep_id).absolute()
        if any(pattern in str(self.folder) for pattern in PATTERNS):
            raise ConfigError(
                f"hydra.launcher.folder={self.folder}: SLURM replaces {' and '.join(PATTERNS)} in names of files; choose a "
                "folder without them."
            )

    def submit(self, groups: Sequence[Cells]) -> None:
        """Submit a job for each of ``groups``, in arrays as long as ``MaxArraySize`` allows.

        Several arrays share what may run at once.
        """
        # Others who share the store make folders beside this one.
        self._store.files.make_folder(self.folder)
        size = scheduler.patiently(scheduler.max_array_size, _tell)
        arrays = [groups[first : first + size] for first in range(0, len(groups), size)]
        most = self._options.parallelism
        lanes = min(most or len(arrays), len(arrays))
        ahead: list[str | None] = [None] * lanes
        for index, array in enumerate(arrays):
            lane = index % lanes
            width = len(array) if most is None else most // lanes + (lane < most % lanes)
            # Fewer may run than there are arrays: the arrays of a lane then follow one another.
            ahead[lane] = self._submit_array(array, width, ahead[lane])
        cells = sum(len(group) for group in groups)
        arrays_told = f" in {len(arrays)} arrays" if len(arrays) > 1 else ""
        _tell(f"submitted {_count(len(groups), 'job')}{arrays_told} for {_count(cells, 'cell')}; logs in {self.folder}")

    def _submit_array(self, groups: Sequence[Cells], width: int, after: str | None) -> str:
        # Slow to import, and only needed here.
        import submitit

        from launch.workers.slurm_job import Job

        token = uuid.uuid4().hex
        executor = submitit.SlurmExecutor(
            self.folder, max_num_timeout=self._options.requeues, python=self._options.python
        )
        executor.update_parameters(
            **self._options.parameters(),
            job_name=self._name,
            comment=token,
            array_parallelism=width,
            dependency=f"afterany:{after}" if after else None,
        )
        wanted = [Job.of(self._store.root, self._sweep_id, group, self._options) for group in groups]

        def attempt() -> list[Any]:
            # sbatch may have failed to hear that its job was taken, which then lacks what Submitit puts beside it.
            scheduler.cancel_arrays(scheduler.commented(token))
            try:
                with _outside_any_job():
                    submitted: list[Any] = executor.submit_array(wanted)
            except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError) as error:
                raise ClusterError(f"sbatch: {' '.join(str(error).split()) or 'failed without a word'}") from error
            return submitted

        submitted = scheduler.patiently(attempt, _tell)
        for job, group in zip(submitted, groups, strict=True):
            one = Submitted(JobId.parse(job.job_id), tuple(group), now(), self.folder)
            jobs.note(self._store, self._sweep_id, one)
        return str(JobId.parse(submitted[0].job_id).number)


def _under_way(store: Store, sweep_id: str, queued: Collection[JobId]) -> set[str]:
    """Cells of jobs that have not ended."""
    return {cell for job in jobs.submitted(store, sweep_id) if job.id in queued for cell in job.cells}


def _without(groups: Sequence[Cells], cells: set[str]) -> list[Cells]:
    left = [[cell for cell in group if cell not in cells] for group in groups]
    return [group for group in left if group]


def _within_limit(groups: list[Cells], limit: int | None) -> list[Cells]:
    """``groups``, neighbours joined where the cluster takes no more than ``limit`` jobs of this user."""
    if limit is None or len(groups) <= limit:
        return groups
    if limit == 0:
        raise ConfigError(
            "hydra/launcher=slurm: as many of your jobs are queued as the limits of your account and quality of service "
            "allow; wait for some to end, or choose another hydra.launcher.account or hydra.launcher.qos."
        )
    bounds = [round(index * len(groups) / limit) for index in range(limit + 1)]
    _tell(f"the cluster takes {limit} more jobs of yours: {len(groups)} groups of cells are joined into as many")
    return [[cell for group in groups[low:high] for cell in group] for low, high in pairwise(bounds)]


def _wait(store: Store, sweep_id: str) -> bool:
    """Show the sweep until its jobs have ended. Ctrl-C leaves them to themselves, and false is returned."""
    gone, said = 0.0, ""
    told: set[JobId] = set()
    try:
        with Foreground(SweepReader(store, sweep_id)) as shown:
            while not shown.now.ended and not (gone and time.monotonic() - gone >= SETTLE_SECONDS):
                shown()
                at_work = shown.now.jobs
                gone = (gone or time.monotonic()) if at_work.gone else 0.0
                if (summary := f"jobs: {at_work.summary()}") != said:
                    shown.say(said := summary)
                _tell_failed(shown, told, settled=False)
                time.sleep(POLL_SECONDS)
            _tell_failed(shown, told, settled=True)
    except KeyboardInterrupt:
        _tell(f"detached, the jobs go on; {_how_to_come_back(store, sweep_id)}")
        return False
    return True


def _tell_failed(shown: Foreground, told: set[JobId], settled: bool) -> None:
    """Say once of each job that ended before its cells had: at once if no worker ever came of it, else when all is over."""
    worked = {worker.job for worker in shown.now.workers}
    new = [one for one in shown.now.jobs.failed if one.id not in told and (settled or str(one.id) not in worked)]
    told |= {one.id for one in new}
    for line in jobs.told(new):
        shown.say(line)


def _how_to_come_back(store: Store, sweep_id: str) -> str:
    watch = sweep_file.command("status", store.root, sweep_id, "--watch")
    cancel = sweep_file.command("cancel", store.root, sweep_id)
    return (
        f"{watch} shows them, {cancel} ends them, and the same command again waits for them and submits what is missing"
    )


@contextmanager
def _outside_any_job() -> Iterator[None]:
    """Without the variables of a job that this process may run in, which sbatch would take for requests.

    SLURM_CONF stays: it says which cluster is meant.
    """
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")) and key != "SLURM_CONF"
    }
    for key in inherited:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(inherited)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
