"""Two clusters for all tests that need a cluster, in any process of pytest-xdist; each serves a single test at a time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import SLURM_CLUSTERS, SLURM_ROOT
from tests.launch.slurm.cluster import INSTALL, Cluster, missing_programs
from tests.launch.slurm.places import Place
from tests.launch.slurm.warm import serving


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of SLURM first, in as many processes as there are clusters: they wait while others compute."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slurm)
    ours = [item for item in items if item.get_closest_marker("slurm")]
    others = [item for item in items if not item.get_closest_marker("slurm")]
    # pytest-xdist begins by giving each process as many neighbours.
    share = len(items) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items.clear()
    for cluster in range(SLURM_CLUSTERS):
        items += ours[cluster::SLURM_CLUSTERS]
        while others and len(items) < (cluster + 1) * share:
            items.append(others.pop(0))
    items += others


@contextmanager
def _a_free_cluster(roots: Path) -> Iterator[Cluster]:
    """Start a cluster that no other process has, and keep it for as long as this lasts."""
    names = [str(number) for number in range(SLURM_CLUSTERS)]
    while True:
        for name in names:
            with (roots / f"{name} in use").open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                cluster = Cluster(roots / name)
                # Taken down when the whole of pytest ends (tests/conftest.py).
                if not cluster.is_up():
                    cluster.up()
                cluster.restore()
                yield cluster
                return
        time.sleep(0.1)


@pytest.fixture(scope="session")
def warm_workers() -> Iterator[dict[str, str]]:
    """Return the variables with which jobs fork their workers from a process that has imported torch."""
    roots = Path(os.environ[SLURM_ROOT])
    roots.mkdir(exist_ok=True)
    with serving(roots / f"workers of {os.getpid()}") as environment:
        yield environment


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Lend the test a cluster of its own, empty and with all nodes; SLURM's commands talk to it."""
    if missing := missing_programs():
        pytest.skip(f"no {', '.join(missing)}: {INSTALL}")
    if os.getuid():
        pytest.skip(
            "a GPU of the test cluster is a device file, which only root can make: sudo .venv/bin/python -m pytest"
        )
    roots = Path(os.environ[SLURM_ROOT])
    roots.mkdir(exist_ok=True)
    with _a_free_cluster(roots) as found:
        for key, value in {**found.environment, **request.getfixturevalue("warm_workers")}.items():
            monkeypatch.setenv(key, value)
        yield found


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Return ``eventually(condition, what)``, which waits until the condition holds, or fails with the text ``what``."""

    def wait(condition: Callable[[], object], what: str, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
            time.sleep(0.5)  # Asking SLURM takes processor time from the jobs that are waited for.

    return wait


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    # As people name their folders.
    folder = tmp_path / "grüße 1"
    folder.mkdir()
    here = Place(folder)
    yield here
    for process in here.started:
        process.kill()
        process.communicate()
