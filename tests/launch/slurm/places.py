"""Folders in which tests run sweeps as jobs, the files that jobs leave there, and SLURM's view of the jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.commands import Forked, run_forked
from tests.conftest import command_environment
from tests.launch.slurm.cluster import Cluster

Eventually = Callable[..., None]
SMALL = ("task.limit=8", "calibration.samples=4", "calibration.batch_size=4", "tracker=none")
# Unchecked, because a process with torch for each of these sweeps would take longer than their jobs.
LAUNCHER = (
    "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem=1500M", "hydra.launcher.time=10",
    "hydra.launcher.check=false",
)  # fmt: skip


@dataclass
class Place:
    """A folder where commands run on the test cluster, with the files that they leave there."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    started: list[Forked] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.folder / "runs"

    def start(self, *arguments: str) -> Forked:
        process = Forked("mmq_sweeps", arguments, self.folder, command_environment(**self.environment))
        self.started.append(process)
        return process

    def run(self, *arguments: str, module: str = "mmq_sweeps", status: int = 0) -> tuple[str, str]:
        """Return standard output and standard error of a command, which must end with ``status``."""
        done = run_forked(module, arguments, self.folder, command_environment(**self.environment))
        told = done.stdout, done.stderr
        assert done.returncode == status, told
        return told

    def records(self) -> dict[str, dict]:
        found = [json.loads(path.read_text()) for path in self.store.glob("cells/*/record.json")]
        return {record["id"]: record for record in found}

    def jobs(self) -> dict[str, list[str]]:
        """Return the cells of every submitted job."""
        found = [json.loads(path.read_text()) for path in self.store.glob("sweeps/*/jobs/*.json")]
        return {job["job"]: job["cells"] for job in found}

    def workers(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in self.store.glob("sweeps/*/workers/*.json")]

    def log(self, job: str) -> str:
        (path,) = self.folder.glob(f"runs.jobs/*/{job}_0_log.out")
        return path.read_text()

    def at_work(self, job: str) -> bool:
        """Return whether a worker of a job runs and is in the middle of a cell."""
        return any(one["job"] == job and one["state"] == "running" and one["cell"] for one in self.workers())


def waiting(seconds: float) -> tuple[str, ...]:
    return ("task._target_=tests.launch.slurm.waiting.WaitingTask", f"+task.seconds={seconds}")


def states(cluster: Cluster, *jobs: str) -> list[str]:
    told = cluster.run("sacct", "-nPX", "--format=State", f"--jobs={','.join(jobs)}")
    return [line.split()[0] for line in told.splitlines()]


def restarts(cluster: Cluster, job: str) -> int:
    told = cluster.run("scontrol", "show", "job", "--oneliner", job)
    return int(told.split("Restarts=")[1].split()[0])


def number_of(cluster: Cluster, job: str) -> str:
    """Return a task's own job number, without that of its array."""
    told = cluster.run("scontrol", "show", "job", "--oneliner", job)
    return told.split("JobId=")[1].split()[0]
