from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def published() -> Path:
    """The study's published tables."""
    folder = Path(os.environ.get("MMQ_PUBLISHED", Path(__file__).resolve().parents[3] / "shared" / "published"))
    if not folder.is_dir():
        pytest.skip(
            "the study's published results are not here: git clone https://github.com/gautomdas/mmq and set MMQ_PUBLISHED"
        )
    return folder
