"""Compose multiruns in this process with the command's own sweeper, up to the launcher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from launch.plugin import launchers
from launch.plugin.compose import Composer
from launch.plugin.launchers import LocalLauncher
from launch.plugin.patches import plain_all
from mmq_sweeps.config import schema
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.sweep import Sweep, plan


@dataclass(frozen=True)
class Multirun:
    """The jobs that a command line asks for, and the loader and configuration to compose them with."""

    loader: ConfigLoader
    master: DictConfig
    jobs: list[list[str]]

    def configs(self) -> Iterator[DictConfig]:
        return map(self.composer().compose, self.jobs)

    def composer(self) -> Composer:
        return Composer(self.loader, self.master)

    def plan(self) -> Sweep:
        """Plan the sweep of the command from plain values; ``test_patches`` compares them with configurations."""
        return plan(plain_all(self.composer(), self.jobs))


@contextmanager
def multirun(*arguments: str) -> Iterator[Multirun]:
    """Open the multirun of ``python -m mmq_sweeps -m ARGUMENT ...``."""
    schema.register()
    launchers.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", list(arguments), RunMode.MULTIRUN)
        handed_over: list[list[str]] = []

        class Kept(LocalLauncher):
            def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:  # noqa: ARG002
                handed_over.extend(job_overrides)

        sweeper = Plugins.instance().instantiate_sweeper(
            hydra_context=HydraContext(config_loader=loader, callbacks=None),  # type: ignore[arg-type]
            task_function=lambda config: None,
            config=master,
        )
        sweeper.cells_launcher = Kept()  # type: ignore[attr-defined]
        sweeper.sweep(OmegaConf.to_container(master.hydra.overrides.task, resolve=False))  # type: ignore[arg-type]
        yield Multirun(loader, master, handed_over)
