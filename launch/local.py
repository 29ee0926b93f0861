"""The default launcher: all cells of a sweep one after the other in this process, on one loaded model."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mmq_sweeps.sweep import run_sweep


class LocalLauncher(Launcher):
    """Composes every cell of the sweep, then runs them as one; exits with status 1 where a cell failed."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:  # noqa: ARG002
        loader = self.context.config_loader
        configs = [loader.load_sweep_config(self.config, list(overrides)) for overrides in job_overrides]
        status = run_sweep(configs, shlex.join(sys.argv))
        if status:
            # Hydra would report the first failure with its traceback; the sweep has told all of them by now.
            raise SystemExit(status)
        return [
            JobReturn(overrides=overrides, _return_value=0, status=JobStatus.COMPLETED) for overrides in job_overrides
        ]


PLUGIN_NAME = "hydra_plugins.launch.local.LocalLauncher"


def register() -> None:
    """Make the launcher known to Hydra as ``PLUGIN_NAME``, the ``_target_`` of ``conf/hydra/launcher/local.yaml``."""
    plugins = Plugins.instance()
    plugins.register(LocalLauncher)
    # Hydra refuses a plugin whose name is not in the package hydra_plugins, wherever its class lies.
    plugins.class_name_to_class[PLUGIN_NAME] = LocalLauncher
