from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch.search.asking import SEARCH, found


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run a search to its end; return its folder and its output."""
    folder = tmp_path_factory.mktemp("searched")
    return folder, found(folder, *SEARCH)
