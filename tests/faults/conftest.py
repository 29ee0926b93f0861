from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.refusals import Told, answered

PLANNED = ("hydra.launcher.check=false", "--json")


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., Told]:
    """Return a function that runs the command in a fork; it returns exit status, standard output and standard error."""
    return functools.partial(answered, tmp_path)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return a configuration folder outside the package, for ``--config-dir``."""
    folder = tmp_path / "own"
    (folder / "experiment").mkdir(parents=True)
    return folder


def write(folder: Path, name: str, text: str, package: str = "# @package _global_\n") -> None:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(package + text)
