"""One cluster for all tests that need one, whichever process of pytest-xdist they land in; one test at a time has it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import SLURM_ROOT
from tests.slurm.cluster import INSTALL, Cluster, missing_programs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slurm)
    # First, since they take turns: what one process has begun is done when the others are through with the rest.
    items.sort(key=lambda item: here not in item.path.parents)


@pytest.fixture(scope="session")
def running_cluster() -> Cluster:
    """Started by the first that asks; taken down when the whole of pytest ends (tests/conftest.py)."""
    if missing := missing_programs():
        pytest.skip(f"no {', '.join(missing)}: {INSTALL}")
    if os.getuid():
        pytest.skip(
            "a GPU of the test cluster is a device file, which only root can make: sudo .venv/bin/python -m pytest"
        )
    root = Path(os.environ[SLURM_ROOT])
    root.mkdir(exist_ok=True)
    cluster = Cluster(root)
    with (root / "starting").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not cluster.is_up():
            cluster.up()
    return cluster


@pytest.fixture
def cluster(running_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster for this test alone, empty and with all nodes; SLURM's commands talk to it."""
    for key, value in running_cluster.environment.items():
        monkeypatch.setenv(key, value)
    with (running_cluster.root / "in use").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        running_cluster.restore()
        yield running_cluster


@pytest.fixture
def eventually() -> Callable[..., None]:
    """``eventually(condition, what)`` waits until the condition holds, and fails saying ``what`` where it never does."""

    def wait(condition: Callable[[], object], what: str, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
            time.sleep(0.2)

    return wait
