"""lmms-eval's own functions, to which the benchmarks' metrics and prompts are compared."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from PIL import ImageFile

VERSION = "0.7.3"
INSTALL = f"pip install 'mmq-sweeps[lmms-eval]' && pip install --no-deps lmms-eval=={VERSION}"


def lmms(module: str) -> Any:
    """Import a module of the library, as ``lmms("tasks.pope.utils")``; skip the test if the library is missing."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        pytest.importorskip("lmms_eval", reason=INSTALL)
        return import_module(f"lmms_eval.{module}")
    finally:
        # Some of its modules make Pillow accept truncated images, in the whole process.
        ImageFile.LOAD_TRUNCATED_IMAGES = before
