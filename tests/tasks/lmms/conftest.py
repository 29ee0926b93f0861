"""Fixtures of the tests of lmms-eval's tasks: those tasks, and the embedded LLaVA."""

from __future__ import annotations

import pytest

from mmq_sweeps.config.model_catalog import read_model
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import LoadedModel, load_model
from tests.data.lmms.conftest import datasets_cache, tasks

__all__ = ["datasets_cache", "tasks"]


@pytest.fixture(scope="session")
def llava() -> LoadedModel:
    with quiet_libraries():
        return load_model(read_model("tiny_llava"))
