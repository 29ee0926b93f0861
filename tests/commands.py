"""Commands as processes that need not import torch again: forked from one that has imported what they all import.

A command's process is a real one, with its own folder, environment and exit status. What it leaves out is what
``python -m`` does before the first line of ours, and the seconds of importing torch and transformers.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

PRELOADED = ["mmq_sweeps.execute", "launch.start", "launch.local", "tests.preloaded"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


def run_forked(
    module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """``python -m module arguments`` in ``folder``."""
    with TemporaryDirectory() as outputs:
        process = CONTEXT.Process(target=_child, args=(module, list(arguments), folder, dict(environment), outputs))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired([module, *arguments], timeout)
        told = [Path(outputs, name).read_text() for name in ("out", "err")]
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, *told)


def _child(module: str, arguments: list[str], folder: Path, environment: dict[str, str], outputs: str) -> None:
    for number, name in ((1, "out"), (2, "err")):
        to = os.open(Path(outputs, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(to, number)
        os.close(to)
    # What was opened before is the other process's.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    sys.stderr.reconfigure(line_buffering=True)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(folder), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
