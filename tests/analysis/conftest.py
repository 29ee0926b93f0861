from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def published() -> Path:
    """Return the folder of the study's published tables."""
    folder = Path(os.environ.get("MMQ_PUBLISHED", Path(__file__).resolve().parents[3] / "shared" / "published"))
    if not folder.is_dir():
        pytest.skip(
            "the study's published results are not here: git clone https://github.com/gautomdas/mmq and set MMQ_PUBLISHED"
        )
    return folder


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw images with a fifth of their dots, which takes half the time and changes no size in inches."""
    from analysis.figures import paper

    monkeypatch.setattr(paper, "DPI", 60)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache tables in a folder of the test, in child processes as well."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder
