"""Run the cells of a sweep as SLURM jobs, submitted through Submitit (``hydra/launcher=slurm``).

A job is an array task that runs a batch of cells (``workers/slurm_job.py``). The submitting process may exit or die:
all that a job needs is in the store, and the same command submits only the cells that have neither a record nor a
queued job.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from launch import sweep_file
from launch.monitor.findings import budget_of
from launch.monitor.live_table import Foreground
from launch.monitor.sweep_state import SweepReader
from launch.planning.plan import Plan, check_counts
from launch.slurm import cluster, jobs, scheduler
from launch.slurm.jobs import Submitted
from launch.slurm.options import Options
from launch.slurm.scheduler import ClusterError, JobId
from launch.workers.heartbeat import now
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.progress import to_stderr, warnings_to
from mmq_sweeps.store.store import Store

POLL_SECONDS = 0.2
# A job leaves the queue shortly before its last record is visible on other machines.
SETTLE_SECONDS = 5.0
# Longest wait for jobs that are ending: SLURM kills their processes after KillWait, 30 s by default.
ENDING_SECONDS, ENDING_POLL_SECONDS = 90.0, 1.0
# Submitit and sbatch would expand these patterns inside a folder's name.
PATTERNS = ("%", "\\")

Cells = Sequence[str]


def check(launcher: Mapping[str, Any]) -> None:
    """Raise a ``ConfigError`` listing all settings that are invalid in general or on this cluster, before any work.

    With ``dry_run`` the cluster is not queried, so that a plan can be made on any machine.
    """
    check_counts(launcher)
    options = Options.of(launcher)
    if launcher.get("dry_run"):
        return
    cluster.require()
    if found := scheduler.patiently(lambda: cluster.problems(options.asked)):
        raise ConfigError(found)
    objection = scheduler.patiently(lambda: cluster.would_take(options.flags()))
    # The limit on queued jobs is handled in `dispatch`, which knows the number of jobs.
    if objection and "MaxSubmitJob" not in objection:
        raise ConfigError(
            f"hydra/launcher=slurm: sbatch says: {objection}; it was asked for {' '.join(options.flags())}"
        )


def dispatch(plan: Plan, store: Store, sweep_id: str, launcher: Mapping[str, Any]) -> bool:
    """Submit the pending cells of ``plan`` that are in no job yet; return True if all have ended."""
    options = Options.of(launcher)
    name = jobs.job_name(sweep_id)
    queued = _queued(name)
    under_way = {cell for job in jobs.submitted(store, sweep_id) if job.id in queued for cell in job.cells}
    left = ([cell for cell in group if cell not in under_way] for group in plan.batches)
    groups: list[Cells] = [group for group in left if group]
    if under_way:
        to_stderr(f"{counted(len(under_way), 'cell is', 'cells are')} in jobs that are queued or running already")
    if groups:
        limit = scheduler.patiently(lambda: cluster.submit_limit(options.account, options.qos))
        groups = _within_limit(groups, limit)
        Submission(store, sweep_id, name, options).submit(groups)
    if not options.wait:
        to_stderr(f"not waiting; {_how_to_come_back(store, sweep_id)}")
        return False
    return _wait(store, sweep_id, budget_of(plan.sweep.settings))


class Submission:
    """Submitter of groups of cells as job arrays; records in the store which job runs which cells."""

    def __init__(self, store: Store, sweep_id: str, name: str, options: Options) -> None:
        self._store, self._sweep_id, self._name, self._options = store, sweep_id, name, options
        self.folder = (Path(options.folder or f"{store.root}.jobs") / sweep_id).absolute()
        if any(pattern in str(self.folder) for pattern in PATTERNS):
            raise ConfigError(
                f"hydra.launcher.folder={self.folder}: SLURM replaces {' and '.join(PATTERNS)} in names of files; choose a "
                "folder without them."
            )

    def submit(self, groups: Sequence[Cells]) -> None:
        """Submit a job for each of ``groups``, in arrays of up to ``MaxArraySize`` jobs.

        Several arrays share the limit ``parallelism``.
        """
        # Other users of the store must be able to create folders beside this.
        self._store.files.make_folder(self.folder)
        size = scheduler.patiently(cluster.max_array_size)
        arrays = [groups[first : first + size] for first in range(0, len(groups), size)]
        most = self._options.parallelism
        lanes = min(most or len(arrays), len(arrays))
        ahead: list[str | None] = [None] * lanes
        for index, array in enumerate(arrays):
            lane = index % lanes
            width = len(array) if most is None else most // lanes + (lane < most % lanes)
            # With more arrays than `parallelism`, the arrays of a lane run one after another.
            ahead[lane] = self._submit_array(array, width, ahead[lane])
        cells = sum(len(group) for group in groups)
        arrays_told = f" in {len(arrays)} arrays" if len(arrays) > 1 else ""
        to_stderr(
            f"submitted {counted(len(groups), 'job')}{arrays_told} for {counted(cells, 'cell')}; logs in {self.folder}"
        )

    def _submit_array(self, groups: Sequence[Cells], width: int, after: str | None) -> str:
        # Imported here because it is slow.
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
            # If sbatch failed after its job was accepted, cancel that job: it lacks Submitit's files.
            scheduler.cancel_arrays(scheduler.commented(token))
            try:
                with _outside_any_job():
                    submitted: list[Any] = executor.submit_array(wanted)
            except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError) as error:
                raise ClusterError(f"sbatch: {' '.join(str(error).split()) or 'failed without a word'}") from error
            return submitted

        submitted = scheduler.patiently(attempt)
        for job, group in zip(submitted, groups, strict=True):
            one = Submitted(JobId.parse(job.job_id), tuple(group), now(), self.folder)
            jobs.note(self._store, self._sweep_id, one)
        return str(JobId.parse(submitted[0].job_id).number)


def _queued(name: str) -> set[JobId]:
    """Return the jobs called ``name`` that wait or run; jobs that are ending are waited for.

    Right after ``scancel``, or when its cells are done, a job is still in the queue for some seconds; one that is
    preempted goes back into it. A job that ends for longer than ``ENDING_SECONDS``, as on a dead node, counts as ended:
    the store's locks keep its cells from being run twice.
    """
    until = time.monotonic() + ENDING_SECONDS
    found = scheduler.patiently(lambda: scheduler.queued(name))
    if any(job.ending for job in found.values()):
        to_stderr("waiting for jobs of this sweep that are ending")
    while any(job.ending for job in found.values()) and time.monotonic() < until:
        time.sleep(ENDING_POLL_SECONDS)
        found = scheduler.patiently(lambda: scheduler.queued(name))
    return {job.job for job in found.values() if not job.ending}


def _within_limit(groups: list[Cells], limit: int | None) -> list[Cells]:
    """Merge neighbouring ``groups`` so that at most ``limit`` jobs are submitted."""
    if limit is None or len(groups) <= limit:
        return groups
    if limit == 0:
        raise ConfigError(
            "hydra/launcher=slurm: as many of your jobs are queued as the limits of your account and quality of service "
            "allow; wait for some to end, or choose another hydra.launcher.account or hydra.launcher.qos."
        )
    bounds = [round(index * len(groups) / limit) for index in range(limit + 1)]
    to_stderr(f"the cluster takes {limit} more jobs of yours: {len(groups)} groups of cells are joined into as many")
    return [[cell for group in groups[low:high] for cell in group] for low, high in pairwise(bounds)]


def _wait(store: Store, sweep_id: str, budget: float | None) -> bool:
    """Show the sweep until its jobs have ended and return True. On Ctrl-C, return False and leave the jobs running."""
    gone, said = 0.0, ""
    told: set[JobId] = set()
    try:
        with Foreground(SweepReader(store, sweep_id), budget) as shown, warnings_to(shown.say):
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
        to_stderr(f"detached, the jobs go on; {_how_to_come_back(store, sweep_id)}")
        return False
    return True


def _tell_failed(shown: Foreground, told: set[JobId], settled: bool) -> None:
    """Report each job that ended before its cells, once: immediately if no worker started in it, else when ``settled``."""
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
    """Hide the environment of a surrounding SLURM job, which sbatch would read as options.

    SLURM_CONF stays: it selects the cluster.
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
