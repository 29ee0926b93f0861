"""Run commands as forks of a process that has imported torch already, so that no command imports it again.

A command is a real process, with its own folder, environment and exit status, and so are its workers and checks, which are
forked from it. Only two things are left out: the work of ``python -m`` before our first line, and the seconds of importing
torch and transformers.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from types import SimpleNamespace
from typing import Any, BinaryIO

PRELOADED = [
    "mmq_sweeps.execution.executor",
    "launch.start",
    "launch.dispatch.local",
    "launch.dispatch.slurm",
    "tests.preloaded",
]
# In place of a module: the text of a program follows.
PROGRAM = "-c"
# The variables that huggingface_hub reads when it is imported, which a forked command reads again.
HUB_VARIABLES = {"HF_HOME", "HF_ENDPOINT"}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)
# Names the address of the fork server, if the processes of pytest-xdist share a server.
SERVER = "MMQ_FORKSERVER"
FORK = multiprocessing.get_context("fork")


def keep_what_is_imported() -> None:
    """Exclude all objects from garbage collection, which would copy the pages that forks share with this process."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # Some libraries report objects that are left at the end as leaked.


def write_without_waiting() -> None:
    """Do not wait for the disk after a write: no test turns the power off."""
    os.fsync = lambda descriptor: None


def start_server() -> None:
    """Start the server that forks, for this process and those that it starts, so that only it need import torch."""
    forkserver.ensure_running()
    os.environ[SERVER] = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]


def use_server() -> None:
    """Fork this process's commands from the server that another process has started, if there is such a server."""
    if address := os.environ.get(SERVER):
        server: Any = forkserver._forkserver  # type: ignore[attr-defined]
        server._forkserver_address, server.ensure_running = address, lambda: None
        # Whoever has started it ends it; each process that it forks is given this one's end of a pipe all the same.
        server._forkserver_alive_fd = os.pipe()[1]


class Forked:
    """A running ``python -m module arguments`` in ``folder``, with the interface of ``subprocess.Popen``.

    With ``module="-c"`` the first of ``arguments`` is a program's text, as for Python itself. End it with ``communicate``.
    Its output goes to the device ``terminal``, if that is given.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        terminal: str | None = None,
    ) -> None:
        self.args = [module, *arguments]
        self._outputs = TemporaryDirectory()
        self._written: tuple[str, str] | None = None
        outputs = (terminal, terminal) if terminal else tuple(f"{self._outputs.name}/{name}" for name in ("out", "err"))
        given = (module, list(arguments), folder, dict(environment), outputs)
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

    def send_signal(self, how: signal.Signals) -> None:
        os.kill(self.pid, how)

    def kill(self) -> None:
        self._process.kill()

    def told(self) -> str:
        """Return its standard error so far."""
        return self._read("err")

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for the end and return standard output and standard error; kill the process after ``timeout`` seconds."""
        if self._written is None:
            with self._outputs:
                self._process.join(timeout)
                if self.returncode is None:
                    self.kill()
                    self._process.join()
                    raise subprocess.TimeoutExpired(self.args, timeout)
                self._written = self._read("out"), self._read("err")
        return self._written

    def _read(self, name: str) -> str:
        path = Path(self._outputs.name, name)
        # Absent where it was killed before it had opened it.
        return path.read_text() if path.exists() else ""


def run_forked(
    module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module arguments`` in ``folder`` to its end."""
    process = Forked(module, arguments, folder, environment)
    told = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, *told)


class _Worker:
    """A forked worker with the part of ``subprocess.Popen`` that ``launch/workers/pool.py`` uses; does not start Python."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: BinaryIO | int,
        stderr: BinaryIO,
        start_new_session: bool,
    ) -> None:
        python, option, module, *arguments = command
        assert (python, option) == (sys.executable, "-m")
        assert (stdin, start_new_session) == (subprocess.PIPE, True)
        reader, writer = os.pipe()
        log, answers, answered = stderr.fileno(), None, None
        if stdout == subprocess.PIPE:  # A worker that waits for more cells answers there.
            answers, answered = os.pipe()
        descriptors = (reader, log if answered is None else answered, log)
        others = (writer,) if answers is None else (writer, answers)
        self._process = FORK.Process(target=_started, args=(module, arguments, dict(env), descriptors, others))
        self._process.start()
        self.pid = self._process.pid
        os.close(reader)
        self.stdin = os.fdopen(writer, "wb")
        self.stdout = None
        if answers is not None and answered is not None:
            os.close(answered)
            self.stdout = os.fdopen(answers, "rb")

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int | None:
        self._process.join()
        return self.returncode

    def send_signal(self, how: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, how)


def _run_child(
    command: Sequence[str], *, input: str, capture_output: bool, text: bool, check: bool
) -> subprocess.CompletedProcess[str]:
    """Answer the ``subprocess.run`` of preflight and of an export's verification with a fork, without starting Python."""
    python, option, module, *arguments = command
    assert (python, option, capture_output, text, check) == (sys.executable, "-m", True, True, False)
    with TemporaryFile("w+") as given, TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        given.write(input)
        given.seek(0)
        descriptors = tuple(file.fileno() for file in (given, out, err))
        process = FORK.Process(target=_started, args=(module, arguments, dict(os.environ), descriptors))
        process.start()
        process.join()
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(command, process.exitcode, out.read(), err.read())


# Stands in for ``subprocess`` in the modules that start Python.
FORKING: Any = SimpleNamespace(Popen=_Worker, PIPE=subprocess.PIPE, run=_run_child)


def _child(
    module: str, arguments: list[str], folder: Path, environment: dict[str, str], outputs: tuple[str, str]
) -> None:
    """Run a command in the process that was forked for it."""
    for number, output in enumerate(outputs, 1):
        to = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_NOCTTY)
        os.dup2(to, number)
        os.close(to)
    enter(folder, environment)
    from launch.planning import preflight
    from launch.workers import pool, warm
    from mmq_sweeps.export import verify

    preflight.subprocess = pool.subprocess = warm.subprocess = verify.subprocess = FORKING
    _run(module, arguments, environment)


def enter(folder: Path, environment: Mapping[str, str]) -> None:
    """Make ``folder`` the working directory and the first to import from, as if Python were started there."""
    os.chdir(folder)
    sys.path[:0] = [str(folder), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    for name in [name for name in sys.modules if (folder / name.partition(".")[0] / "__init__.py").is_file()]:
        del sys.modules[name]  # A folder with packages of its own, as a copy of the checkout, has them imported.


def _started(
    module: str,
    arguments: list[str],
    environment: dict[str, str],
    descriptors: tuple[int, int, int],
    others: tuple[int, ...] = (),
) -> None:
    """Run a command's child in its forked process; ``others`` are the other ends of its pipes, which are closed."""
    for other in others:
        os.close(other)
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    warnings.simplefilter("ignore")  # A fork of pytest's own process would take them for errors.
    run_as(module, arguments, environment)


def run_as(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run ``python -m module arguments`` with descriptors 0, 1 and 2 as its standard input, output and error."""
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    _run(module, arguments, environment)


def _run(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run ``python -m module arguments`` with descriptors 1 and 2 as its standard output and standard error."""
    # The streams that were open before belong to the other process.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    sys.stderr.reconfigure(line_buffering=True)
    # Where the tests run in the background of a shell, it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    if HUB_VARIABLES & environment.keys():
        from huggingface_hub import constants

        importlib.reload(constants)
    sys.argv = [module, *arguments]
    try:
        if module == PROGRAM:
            sys.argv = [module, *arguments[1:]]
            exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
