"""Quantized checkpoints that several tests read; a test that changes one copies it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import silent_bars
from tests.models.quantized.folders import EMBEDDED, LANGUAGE, VISION, compress, scheme, small_llama


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with quiet_libraries():
        yield


@pytest.fixture(scope="package")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vision in 4 bits and groups of 32, language in 3 bits by row, and all else dense."""
    with quiet_libraries(), silent_bars():
        return compress(
            EMBEDDED / "tiny_blip2",
            tmp_path_factory.mktemp("quantized") / "blip2",
            scheme(VISION, 4, 32),
            scheme(LANGUAGE, 3),
        )


@pytest.fixture(scope="package")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA at full precision."""
    return small_llama(tmp_path_factory.mktemp("quantized") / "llama")


@pytest.fixture
def copy(blip2: Path, tmp_path: Path) -> Path:
    return shutil.copytree(blip2, tmp_path / "copy")
