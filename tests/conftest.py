"""Fixtures of all tests: composed configurations, the embedded model, and the command as a real process."""

from __future__ import annotations

import os

# Before anything imports torch, as the command itself does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Every worker has a core; more threads than cores would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from omegaconf import DictConfig, OmegaConf

from mmq_sweeps.config import schema
from mmq_sweeps.config.paths import conf_dir
from tests import configurations
from tests.commands import (
    HUB_VARIABLES,
    keep_what_is_imported,
    run_forked,
    start_server,
    use_server,
    write_without_waiting,
)
from tests.reporting.wandb_server import Site, serve, settings

# Torch is imported by the fixtures that need it: the process that deals the tests out runs none.
if TYPE_CHECKING:
    from mmq_sweeps.models.loading import LoadedModel
    from mmq_sweeps.quantization.targets import Part

# Few items: these tests ask whether a cell is right, not how good its model is.
SMALL = ("task.limit=24", "calibration.samples=16", "calibration.batch_size=8", "tracker=none")


# Digests of files that tests write are kept apart from the developer's own; processes that tests start inherit it.
os.environ.setdefault("MMQ_CACHE", str(Path(tempfile.gettempdir(), f"mmq-cache-{os.getuid()}")))
# So are the copies that datasets makes of them.
os.environ.setdefault("HF_DATASETS_CACHE", str(Path(tempfile.gettempdir(), f"mmq-datasets-{os.getuid()}")))

# Names the folder of the SLURM clusters that tests/launch/slurm share, across the processes of pytest-xdist.
SLURM_ROOT = "MMQ_SLURM_ROOT"
SLURM_CLUSTERS = 2


configurations.parse_once()
write_without_waiting()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Inherited from a shell that runs the tests in the background; the processes that tests interrupt would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        use_server()
        return
    os.environ[SLURM_ROOT] = str(Path(tempfile.gettempdir(), f"mmq-slurm-{os.getpid()}"))
    if config.getoption("tx", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # As in the workers, which have a core each.
        start_server()


def pytest_xdist_auto_num_workers() -> int:
    """Return a process a core, and a further process for each SLURM cluster, whose tests mostly wait."""
    return (os.cpu_count() or 1) + (SLURM_CLUSTERS if shutil.which("slurmctld") else 0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give tests of SLURM priority over the others: they take turns, and so bound the time of the whole suite."""
    if shutil.which("slurmctld") and not os.getuid():
        os.setpriority(os.PRIO_PROCESS, 0, 0 if item.get_closest_marker("slurm") else 5)


def pytest_collection_finish() -> None:
    import hypothesis  # noqa: F401 - it looks for references to its arguments, which are not found any more later

    keep_what_is_imported()


def pytest_unconfigure(config: pytest.Config) -> None:
    root = Path(os.environ[SLURM_ROOT])
    if not hasattr(config, "workerinput") and root.exists():
        from tests.launch.slurm.cluster import Cluster

        for one in root.iterdir():
            if one.is_dir():
                Cluster(one).down()
        shutil.rmtree(root)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:  # noqa: ARG001
    """Let a skip fail if CI has installed everything, since such a test would never run."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be: {report.longrepr[2]}"
    return report


@pytest.fixture
def composed() -> Callable[..., DictConfig]:
    """Return ``composed("method=gptq", "bits=3")``, which composes the configuration of a cell."""
    return configurations.composed


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Collect every message and warning that is logged during the test, as a command shows it."""
    from mmq_sweeps.reporting.progress import warnings_to

    lines: list[str] = []
    with warnings_to(lines.append):
        yield lines


@pytest.fixture(scope="session")
def model_config() -> dict:
    merged = OmegaConf.merge(
        OmegaConf.structured(schema.ModelConfig), OmegaConf.load(conf_dir() / "model" / "tiny_blip2.yaml")
    )
    return OmegaConf.to_container(merged)


@pytest.fixture(scope="session")
def loaded(model_config: dict) -> LoadedModel:
    from mmq_sweeps.execution.executor import quiet_libraries
    from mmq_sweeps.models.loading import load_model

    with quiet_libraries():
        return load_model(model_config)


@pytest.fixture(scope="session")
def parts(loaded: LoadedModel, model_config: dict) -> dict[str, Part]:
    from mmq_sweeps.quantization.targets import find_parts

    return find_parts(loaded.model, model_config)


@pytest.fixture(scope="session")
def packed_blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint of compressed-tensors: vision in 4 bits and groups of 32, language in 3 bits by row, the rest full."""
    from mmq_sweeps.execution.executor import quiet_libraries
    from mmq_sweeps.models.loading import silent_bars
    from tests.models.quantized.folders import EMBEDDED, LANGUAGE, VISION, compress, scheme

    out = tmp_path_factory.mktemp("packed") / "blip2"
    with quiet_libraries(), silent_bars():
        return compress(EMBEDDED / "tiny_blip2", out, scheme(VISION, 4, 32), scheme(LANGUAGE, 3))


@pytest.fixture
def packed_copy(packed_blip2: Path, tmp_path: Path) -> Path:
    """Copy ``packed_blip2``, to be changed."""
    return shutil.copytree(packed_blip2, tmp_path / "copy")


@pytest.fixture
def wandb_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Serve a W&B server on loopback, which clients of this process and of its child processes take for the real server."""
    import wandb

    # Set first, so that the variables that a tracker sets are undone as well.
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    with serve(Site()) as site:
        for name, value in settings(site, tmp_path).items():
            monkeypatch.setenv(name, value)
        wandb.teardown()  # The client keeps the settings of its first use.
        yield site
        wandb.teardown()


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return ``command("-m", "bits=2,3")``, which runs the command as a process in an empty folder and captures its output.

    Python is started if a variable is given that is read during the imports; otherwise the command is forked.
    """

    def run(*arguments: str, module: str = "mmq_sweeps", **environment: str) -> subprocess.CompletedProcess[str]:
        if environment.keys() <= {"PYTHONPATH", *HUB_VARIABLES}:
            return run_forked(module, arguments, tmp_path, command_environment(**environment))
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=tmp_path,
            env=command_environment(**environment),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def command_environment(**more: str) -> dict[str, str]:
    """Return the environment of a real process: this checkout importable from everywhere, and the caller's variables."""
    checkout = str(Path(__file__).resolve().parent.parent)
    paths = [path for path in (more.pop("PYTHONPATH", ""), checkout, os.environ.get("PYTHONPATH", "")) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}
