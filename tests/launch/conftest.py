from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.processes import Sweeps


@pytest.fixture
def sweeps(tmp_path: Path) -> Iterator[Sweeps]:
    """Sweeps in an empty folder, whose name is no easy one."""
    folder = tmp_path / "a study, with ünïcode"
    folder.mkdir()
    running = Sweeps(folder)
    yield running
    running.end()
