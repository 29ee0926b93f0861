"""Run the cells of a sweep as SLURM jobs, submitted through Submitit (``hydra/launcher=slurm``).

A job is an array task that runs a batch of cells (``workers/slurm_job.py``). The submitting process may exit or die:
all that a job needs is in the store, and the same command submits only the cells that have neither a record nor a
queued job.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from launch import sweep_file
from launch.dispatch.slurm_submission import Cells, Submission, within_limit
from launch.monitor.findings import budget_of
from launch.monitor.live_table import Foreground
from launch.monitor.sweep_state import SweepReader
from launch.planning.plan import Plan, check_counts
from launch.slurm import cluster, jobs, scheduler
from launch.slurm.options import Options
from launch.slurm.scheduler import JobId
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.progress import to_stderr, warnings_to
from mmq_sweeps.store.store import Store

POLL_SECONDS = 0.2
# A job leaves the queue shortly before its last record is visible on other machines.
SETTLE_SECONDS = 5.0
# Longest wait for jobs that are ending: SLURM kills their processes after KillWait, 30 s by default.
ENDING_SECONDS, ENDING_POLL_SECONDS = 90.0, 1.0


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
        groups = within_limit(groups, limit)
        Submission(store, sweep_id, name, options).submit(groups)
    if not options.wait:
        to_stderr(f"not waiting; {_how_to_come_back(store, sweep_id)}")
        return False
    return _wait(store, sweep_id, budget_of(plan.sweep.settings))


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
