"""Commands as processes that need not import torch again: forked from one that has imported what they all import.

A command's process is a real one, with its own folder, environment and exit status. What it leaves out is what
``python -m`` does before the first line of ours, and the seconds of importing torch and transformers.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

PRELOADED = ["mmq_sweeps.execute", "launch.start", "launch.local", "launch.slurm", "tests.preloaded"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


class Forked:
    """``python -m module arguments`` in ``folder``, on its way; to be ended by ``communicate``."""

    def __init__(self, module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.args = [module, *arguments]
        self._outputs = TemporaryDirectory()
        given = (module, list(arguments), folder, dict(environment), self._outputs.name)
        self._process = CONTEXT.Process(target=_child, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it wrote to standard output and standard error until its end; one that takes longer is killed."""
        with self._outputs:
            self._process.join(timeout)
            if self.returncode is None:
                self.kill()
                self._process.join()
                raise subprocess.TimeoutExpired(self.args, timeout)
            out, err = (Path(self._outputs.name, name).read_text() for name in ("out", "err"))
        return out, err


def run_forked(
    module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """``python -m module arguments`` in ``folder``, to its end."""
    process = Forked(module, arguments, folder, environment)
    told = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, *told)


def _child(module: str, arguments: list[str], folder: Path, environment: dict[str, str], outputs: str) -> None:
    for number, name in ((1, "out"), (2, "err")):
        to = os.open(Path(outputs, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(to, number)
        os.close(to)
    # What was opened before is the other process's.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    sys.stderr.reconfigure(line_buffering=True)
    # Where the tests run in the background of a shell, it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(folder), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    for name in [name for name in sys.modules if (folder / name.partition(".")[0] / "__init__.py").is_file()]:
        del sys.modules[name]  # A folder with packages of its own, as a copy of the checkout, has them imported.
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
