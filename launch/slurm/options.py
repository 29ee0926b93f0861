"""Settings of ``hydra/launcher=slurm``: the resources that a job requests. Its yaml explains each setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from launch.slurm import scheduler
from mmq_sweeps.errors import ConfigError, unknown

# Settings that belong to the plan or to Hydra.
OF_THE_PLAN = ("_target_", "dry_run", "check", "cells_per_job", "jobs")
TEXTS = ("partition", "account", "qos", "constraint", "gres", "mem", "python", "folder")
NUMBERS = {"cpus_per_task": 1, "parallelism": 1, "workers_per_job": 1, "requeues": 0, "signal_seconds": 1}
# sbatch flags set by the launcher, which the setting `sbatch` must not repeat.
OWN_FLAGS = ("array", "job-name", "comment", "output", "error", "signal", "requeue", "open-mode", "dependency", "nodes")


@dataclass(frozen=True)
class Options:
    """Settings of a SLURM job: ``time`` in minutes, ``signal_seconds`` from the stop signal to the time limit."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus_per_node: str | None = None
    gres: str | None = None
    cpus_per_task: int = 2
    mem: str | None = None
    time: int = 60
    setup: tuple[str, ...] = ()
    python: str | None = None
    sbatch: dict[str, Any] = field(default_factory=dict)
    parallelism: int | None = None
    workers_per_job: int = 1
    requeues: int = 10
    signal_seconds: int = 120
    wait: bool = True
    folder: str | None = None

    @staticmethod
    def of(launcher: Mapping[str, Any]) -> Options:
        """Parse ``hydra.launcher``; raise a ``ConfigError`` listing all invalid settings."""
        given = {key: value for key, value in launcher.items() if key not in OF_THE_PLAN}
        names = [one.name for one in fields(Options)]
        found = [f"hydra.launcher.{key}: {unknown('setting', key, names)}" for key in given if key not in names]
        given = {key: value for key, value in given.items() if key in names and value is not None}
        found += _wrong_numbers(given)
        for key in TEXTS:
            if key in given and not isinstance(given[key], str | int):
                found.append(f"hydra.launcher.{key}={given[key]}: give it a text.")
        if not isinstance(given.get("wait", True), bool):
            found.append(f"hydra.launcher.wait={given['wait']}: choose true or false.")
        if "gpus_per_node" in given and "gres" in given:
            found.append("hydra.launcher.gpus_per_node and hydra.launcher.gres: give one of them.")
        if not isinstance(given.get("setup", []), list):
            found.append(f"hydra.launcher.setup={given['setup']}: give it a list of lines of shell.")
        if not isinstance(given.get("sbatch", {}), dict):
            found.append(f"hydra.launcher.sbatch={given.pop('sbatch')}: give it flags and values: {{exclusive: true}}.")
        found += [
            f"hydra.launcher.sbatch.{key}: the launcher sets it itself."
            for key in given.get("sbatch", {})
            if key.replace("_", "-") in OWN_FLAGS
        ]
        if found:
            raise ConfigError(found)
        texts = {key: str(given[key]) for key in (*TEXTS, "gpus_per_node") if key in given}
        time = {"time": scheduler.minutes(given["time"])} if "time" in given else {}
        setup = {"setup": tuple(given["setup"])} if "setup" in given else {}
        return Options(**{**given, **texts, **time, **setup})

    @property
    def asked(self) -> dict[str, str | None]:
        """Resources that the cluster identifies by name."""
        return {key: getattr(self, key) for key in ("partition", "account", "qos", "constraint")}

    @property
    def _request(self) -> dict[str, Any]:
        """The resources of a job, by Submitit's names, which are sbatch's with underscores."""
        own = {key: getattr(self, key) for key in (*self.asked, "gpus_per_node", "gres", "mem")}
        given = {key: value for key, value in own.items() if value is not None}
        return {**given, "time": self.time, "nodes": 1, "ntasks_per_node": 1, "cpus_per_task": self.cpus_per_task}

    def parameters(self) -> dict[str, Any]:
        """Return the arguments of Submitit's ``SlurmExecutor.update_parameters``."""
        return {
            **self._request,
            "signal_delay_s": self.signal_seconds,
            "setup": list(self.setup),
            # None, since Submitit's default is refused by clusters that validate wckeys.
            "wckey": None,
            "additional_parameters": {"requeue": True, **self.sbatch},
            # Since SLURM 22.05, srun no longer inherits the cores requested from sbatch.
            "srun_args": [f"--cpus-per-task={self.cpus_per_task}"],
        }

    def flags(self) -> list[str]:
        """Return the same request as sbatch flags."""
        named = {
            key.replace("_", "-"): value for request in (self._request, self.sbatch) for key, value in request.items()
        }
        return [
            f"--{key}" if value is True else f"--{key}={value}"
            for key, value in named.items()
            if value not in (None, False)
        ]


def _wrong_numbers(given: Mapping[str, Any]) -> list[str]:
    found = []
    for key, least in NUMBERS.items():
        value = given.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            found.append(f"hydra.launcher.{key}={value}: choose a whole number, {least} or more.")
    gpus = given.get("gpus_per_node", 1)
    if isinstance(gpus, bool) or not str(gpus).rpartition(":")[2].isdigit():
        found.append(f"hydra.launcher.gpus_per_node={gpus}: choose a number or TYPE:NUMBER, such as 1 or a100:1.")
    try:
        minutes = scheduler.minutes(given.get("time", 60))
    except ValueError:
        found.append(
            f"hydra.launcher.time={given['time']}: choose minutes, or hours as 4:00:00, or days and hours as 1-12."
        )
    else:
        if isinstance(given.get("signal_seconds"), int) and given["signal_seconds"] >= 60 * minutes:
            found.append(
                f"hydra.launcher.signal_seconds={given['signal_seconds']}: is as long as the job's whole time."
            )
    return found
