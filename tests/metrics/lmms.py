"""lmms-eval's own functions, to which the benchmarks' metrics and prompts are compared."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

VERSION = "0.7.3"
INSTALL = (
    f"pip install --no-deps lmms-eval=={VERSION} && pip install pytz tenacity evaluate sacrebleu portalocker tabulate "
    "colorama lxml loguru"
)


def lmms(module: str) -> Any:
    """``lmms("tasks.pope.utils")``: a module of the library; without it the test is skipped, naming the command."""
    pytest.importorskip("lmms_eval", reason=INSTALL)
    return import_module(f"lmms_eval.{module}")
