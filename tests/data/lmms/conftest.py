"""Tasks of lmms-eval that several tests read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.data.lmms.folders import write_tasks


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep prepared tables apart from the developer's own; lmms-eval asks for their folder once in a process."""
    os.environ["LMMS_EVAL_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("lmms"))
