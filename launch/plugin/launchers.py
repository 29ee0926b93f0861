"""Hydra's side of launching: a launcher takes all jobs of a multirun as one sweep."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.plugin.compose import compose_all
from launch.plugin.sweeper import GridSweeper
from launch.start import check_settings, start
from launch.sweep_file import typed
from mmq_sweeps.config.hydra_errors import explain
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError, unknown


class SweepLauncher(Launcher):
    """Composes every cell of the sweep, then starts them as one; exits with status 1 where a cell failed."""

    # What the experiments of the sweep have as hydra.sweeper; None where whoever launches does not say.
    grids: Sequence[Mapping[str, Any]] | None = None

    def __init__(self, **settings: Any) -> None:
        """``settings`` are those of the launcher's yaml, which ``start`` reads as ``hydra.launcher``."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:  # noqa: ARG002
        if not job_overrides:
            raise ConfigError("the sweep is empty: an axis names no value, so there is nothing to run.")
        settings = settings_of(self.config.hydra.launcher)
        check_settings(settings)
        sweep = plan(self._composed(job_overrides))
        status = start(sweep, settings, typed(sys.argv), len(job_overrides))
        if status:
            # Hydra would report the first failure with its traceback; the sweep has told all of them by now.
            raise SystemExit(status)
        return [
            JobReturn(overrides=overrides, _return_value=0, status=JobStatus.COMPLETED) for overrides in job_overrides
        ]

    def _composed(self, job_overrides: Sequence[Sequence[str]]) -> Iterator[DictConfig]:
        """The configuration of each job; a ``ConfigError`` says what is wrong with a job in terms of its own overrides."""
        configs = compose_all(self.context.config_loader, self.config, job_overrides, self.grids)
        for overrides in job_overrides:
            try:
                yield next(configs)
            except (HydraException, OmegaConfBaseException) as error:
                raise ConfigError(explain(error, [*sys.argv[1:], *overrides])) from error


class LocalLauncher(SweepLauncher):
    """``conf/hydra/launcher/local.yaml``."""


class SlurmLauncher(SweepLauncher):
    """``conf/hydra/launcher/slurm.yaml``."""


def settings_of(launcher: Any) -> dict[str, Any]:
    """``hydra.launcher`` of a composed configuration as plain values; a ``ConfigError`` names a field that it does not have."""
    if not isinstance(launcher, DictConfig):
        raise ConfigError(f"hydra.launcher={launcher}: set its fields one by one, or choose hydra/launcher=NAME.")
    settings: dict[str, Any] = OmegaConf.to_container(launcher, resolve=True)  # type: ignore[assignment]
    kind = str(settings.get("_target_")).split(".")[-2:][0]
    if (shipped := conf_dir() / "hydra" / "launcher" / f"{kind}.yaml").is_file():
        known = [str(name) for name in OmegaConf.load(shipped)]
        if wrong := [name for name in settings if name not in known]:
            choices = [name for name in known if name != "_target_"]
            raise ConfigError(f"hydra.launcher.{name}: {unknown('key', name, choices)}" for name in wrong)
    return settings


def register() -> None:
    """Make launchers and sweeper known to Hydra by the names that their yamls in ``conf/hydra`` have as ``_target_``."""
    plugins = Plugins.instance()
    for module, plugin in (("local", LocalLauncher), ("slurm", SlurmLauncher), ("sweeper", GridSweeper)):
        plugins.register(plugin)
        # Hydra refuses a plugin whose name is not in the package hydra_plugins, wherever its class lies.
        plugins.class_name_to_class[f"hydra_plugins.launch.{module}.{plugin.__name__}"] = plugin
    # Hydra's own run cells without a store, and are no choice here.
    for group in ("launcher", "sweeper"):
        ConfigStore.instance().repo["hydra"][group].pop("basic.yaml", None)
