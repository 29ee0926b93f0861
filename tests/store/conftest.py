"""What a store logs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmq_sweeps.reporting.progress import warnings_to


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Every warning that is logged during the test."""
    lines: list[str] = []
    with warnings_to(lines.append):
        yield lines
