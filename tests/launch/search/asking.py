"""Run searches from the command line, to their end or up to their start."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from launch.plugin import launchers
from launch.search import driver
from launch.search.cells import Question
from mmq_sweeps.config import schema
from mmq_sweeps.config.overrides import kept_apart
from mmq_sweeps.config.paths import conf_dir
from tests.commands import run_forked
from tests.conftest import SMALL, command_environment

# Of a method that needs no calibration, on few items: how well it searches is asked of benchmarks/search.py.
SEARCH = ("hydra/sweeper=budget", "hydra.sweeper.max_bpw=[5,7]", "hydra.sweeper.items=32", "method=rtn", "bits=3,4,8")
# Among four assignments: tests with these check the course of a search, not its result.
SHORT = (
    "hydra/sweeper=budget", "hydra.sweeper.max_bpw=8", "hydra.sweeper.items=16", "method=rtn", "bits=3,8",
    "component.connector.bits=8",
)  # fmt: skip


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_forked("mmq_sweeps", ["-m", *SMALL, *arguments], folder, command_environment(**environment))


def found(folder: Path, *arguments: str) -> dict[str, Any]:
    done = run(folder, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def question(*arguments: str, budget: str = "hydra.sweeper.max_bpw=6") -> Question:
    """Return the question of the search ``python -m mmq_sweeps -m hydra/sweeper=budget ARGUMENT ...``."""
    schema.register()
    launchers.register()
    GlobalHydra.instance().clear()
    found: list[Question] = []
    given = kept_apart(["hydra/sweeper=budget", budget, "tracker=none", *arguments])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "search", lambda asked, launcher, command: found.append(asked))
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", given, RunMode.MULTIRUN)
        sweeper: Any = Plugins.instance().instantiate_sweeper(
            hydra_context=HydraContext(config_loader=loader, callbacks=None),  # type: ignore[arg-type]
            task_function=lambda config: None,
            config=master,
        )
        sweeper.sweep(OmegaConf.to_container(master.hydra.overrides.task, resolve=False))
    return found[0]
