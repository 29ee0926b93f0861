"""Hydra launchers that run all jobs of a multirun as a single sweep."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.planning.structures import assignment_source
from launch.plugin.budget import BudgetSweeper
from launch.plugin.compose import Composer
from launch.plugin.patches import plain_all
from launch.plugin.sweeper import GridSweeper
from launch.start import check_settings, start
from launch.sweep_file import typed
from mmq_sweeps.config.hydra_errors import explain
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError, unknown


class SweepLauncher(Launcher):
    """A launcher that composes every cell of the sweep, then starts them together; exits with status 1 if a cell failed."""

    # hydra.sweeper settings of the sweep's experiments; None if the sweeper does not provide them.
    grids: Sequence[Mapping[str, Any]] | None = None

    def __init__(self, **settings: Any) -> None:
        """Ignore ``settings``, those of the launcher's yaml; ``start`` reads them from ``hydra.launcher``."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:  # noqa: ARG002
        if not job_overrides:
            raise ConfigError("the sweep is empty: an axis names no value, so there is nothing to run.")
        settings = self.settings()
        sweep = plan(self.composed(job_overrides), assignment_source(self.config.hydra))
        status = start(sweep, settings, typed(sys.argv), len(job_overrides))
        if status:
            # Exit, since the sweep has reported all failures; Hydra would repeat the first with its traceback.
            raise SystemExit(status)
        return [
            JobReturn(overrides=overrides, _return_value=0, status=JobStatus.COMPLETED) for overrides in job_overrides
        ]

    def settings(self) -> dict[str, Any]:
        """Return ``hydra.launcher`` as plain values; a ``ConfigError`` if one is invalid."""
        settings = settings_of(self.config.hydra.launcher)
        check_settings(settings)
        return settings

    @cached_property
    def composer(self) -> Composer:
        """Composer of all jobs; a search composes those of each part apart, of which most choose the same files."""
        return Composer(self.context.config_loader, self.config, self.grids)

    def composed(self, job_overrides: Sequence[Sequence[str]]) -> Iterator[DictConfig | dict[str, Any]]:
        """Yield the configuration of each job; raise a ``ConfigError`` that names the job's own overrides."""
        configs = plain_all(self.composer, job_overrides)
        for overrides in job_overrides:
            try:
                yield next(configs)
            except (HydraException, OmegaConfBaseException) as error:
                raise ConfigError(explain(error, [*sys.argv[1:], *overrides])) from error


class LocalLauncher(SweepLauncher):
    """Launcher of ``conf/hydra/launcher/local.yaml``."""


class SlurmLauncher(SweepLauncher):
    """Launcher of ``conf/hydra/launcher/slurm.yaml``."""


def settings_of(launcher: Any) -> dict[str, Any]:
    """Return ``hydra.launcher`` as plain values; raise a ``ConfigError`` on fields that the launcher's yaml lacks."""
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
    """Register launchers and sweeper with Hydra under the ``_target_`` names in ``conf/hydra``."""
    plugins = Plugins.instance()
    for module, plugin in (
        ("local", LocalLauncher),
        ("slurm", SlurmLauncher),
        ("sweeper", GridSweeper),
        ("sweeper", BudgetSweeper),
    ):
        plugins.register(plugin)
        # Hydra accepts only plugin names in the package hydra_plugins, wherever the class is defined.
        plugins.class_name_to_class[f"hydra_plugins.launch.{module}.{plugin.__name__}"] = plugin
    # Remove Hydra's own plugins, which run cells without a store.
    for group in ("launcher", "sweeper"):
        ConfigStore.instance().repo["hydra"][group].pop("basic.yaml", None)
