"""Hydra's side of launching: a launcher takes all jobs of a multirun as one sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from launch.compose import compose_all
from launch.start import check_settings, start
from launch.sweeper import GridSweeper
from launch.sweeps import typed
from mmq_sweeps.sweep import plan


class SweepLauncher(Launcher):
    """Composes every cell of the sweep, then starts them as one; exits with status 1 where a cell failed."""

    def __init__(self, **settings: Any) -> None:
        """``settings`` are those of the launcher's yaml, which ``start`` reads as ``hydra.launcher``."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:  # noqa: ARG002
        settings = settings_of(self.config.hydra.launcher)
        check_settings(settings)
        sweep = plan(compose_all(self.context.config_loader, self.config, job_overrides))
        status = start(sweep, settings, typed(sys.argv), len(job_overrides))
        if status:
            # Hydra would report the first failure with its traceback; the sweep has told all of them by now.
            raise SystemExit(status)
        return [
            JobReturn(overrides=overrides, _return_value=0, status=JobStatus.COMPLETED) for overrides in job_overrides
        ]


class LocalLauncher(SweepLauncher):
    """``conf/hydra/launcher/local.yaml``."""


class SlurmLauncher(SweepLauncher):
    """``conf/hydra/launcher/slurm.yaml``."""


def settings_of(launcher: Any) -> dict[str, Any]:
    """``hydra.launcher`` of a composed configuration as plain values."""
    settings: dict[str, Any] = OmegaConf.to_container(launcher, resolve=True)  # type: ignore[assignment]
    return settings


def register() -> None:
    """Make launchers and sweeper known to Hydra by the names that their yamls in ``conf/hydra`` have as ``_target_``."""
    plugins = Plugins.instance()
    for module, plugin in (("local", LocalLauncher), ("slurm", SlurmLauncher), ("sweeper", GridSweeper)):
        plugins.register(plugin)
        # Hydra refuses a plugin whose name is not in the package hydra_plugins, wherever its class lies.
        plugins.class_name_to_class[f"hydra_plugins.launch.{module}.{plugin.__name__}"] = plugin
