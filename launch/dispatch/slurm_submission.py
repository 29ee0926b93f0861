"""Submit groups of cells to SLURM as job arrays, through Submitit."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from launch.slurm import cluster, jobs, scheduler
from launch.slurm.jobs import Submitted
from launch.slurm.options import Options
from launch.slurm.scheduler import ClusterError, JobId
from launch.workers.heartbeat import now
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.progress import to_stderr
from mmq_sweeps.store.store import Store

# Submitit and sbatch would expand these patterns inside a folder's name.
PATTERNS = ("%", "\\")

Cells = Sequence[str]


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


def within_limit(groups: list[Cells], limit: int | None) -> list[Cells]:
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
