"""Models of ``conf/model`` without weights, and the study's published sizes."""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.__main__ import Counted, count

PUBLISHED = Path(os.environ.get("MMQ_PUBLISHED", Path(__file__).parents[3] / "shared" / "published"))


@pytest.fixture(scope="session")
def counted() -> Callable[[str], Counted]:
    """Return ``counted("llava_1_5_7b")``, which builds a model at full size on the meta device, once for all tests."""

    @functools.cache
    def build(name: str) -> Counted:
        with quiet_libraries():
            return count(name)

    return build


@pytest.fixture(scope="session")
def published_sizes() -> list[dict[str, str]]:
    """Return the rows of the study's uniform quantization of BLIP-2."""
    path = PUBLISHED / "uniform_captioning.csv"
    if not path.is_file():
        message = (
            f"{path} is not there: set MMQ_PUBLISHED to a folder with uniform_captioning.csv, "
            "results/quantization_results_w_size.csv of github.com/gautomdas/mmq"
        )
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
