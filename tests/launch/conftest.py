from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.planning import preflight
from launch.workers import pool
from tests.commands import FORKING
from tests.launch.processes import Sweeps


@pytest.fixture
def forked_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork workers and checks from this process, which has imported torch."""
    for module in (preflight, pool):
        monkeypatch.setattr(module, "subprocess", FORKING)


@pytest.fixture
def sweeps(tmp_path: Path) -> Iterator[Sweeps]:
    """Start sweeps in an empty folder whose name has a comma, spaces and umlauts, and end them after the test."""
    folder = tmp_path / "a study, with ünïcode"
    folder.mkdir()
    running = Sweeps(folder)
    yield running
    running.end()
