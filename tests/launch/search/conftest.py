from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.launch.search.asking import SEARCH, found


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a search that has ended, and what it printed."""
    folder = tmp_path_factory.mktemp("searched")
    return folder, found(folder, *SEARCH)
