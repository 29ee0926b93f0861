"""Fixtures that serve official download sites from this machine, and a folder to prepare data in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmq_sweeps.data.catalog import SETS
from tests.data.preparing import NAMES, official, small
from tests.data.server import Site, serve


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("official")
    return folder, official(folder)


@pytest.fixture
def site(served: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in NAMES:
        monkeypatch.setitem(SETS, name, small(SETS[name], served[1]))  # type: ignore[arg-type]
    with serve(Site(dict(served[1]))) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "my data, größer"
