"""Quantized checkpoints that several tests read; a test that changes a checkpoint copies it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmq_sweeps.execution.executor import quiet_libraries
from tests.models.quantized.folders import small_llama


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with quiet_libraries():
        yield


@pytest.fixture(scope="package")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a LLaMA at full precision."""
    return small_llama(tmp_path_factory.mktemp("quantized") / "llama")
