"""Run sweeps as real processes, which tests hold in the middle of a cell, kill and look at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch import sweep_file as recorded
from launch.commands.status import as_json
from launch.monitor.sweep_state import SweepReader
from mmq_sweeps.store.store import Store
from tests.commands import Forked, run_forked
from tests.conftest import SMALL, command_environment

# Not how good a cell is but that it ran is asked here.
FEW = (*SMALL, "task.limit=4")
# Unchecked, because that is another process with torch for each of them.
POOL = ("hydra.launcher.workers=2", "hydra.launcher.check=false")
HELD = "task.metrics=[cider,'tests.launch.holding:Hold']"
PATIENCE_SECONDS = 300
Process = subprocess.Popen[str] | Forked


@dataclass
class Sweeps:
    """Commands in ``folder``, whose store is ``folder/runs``."""

    folder: Path
    started: list[Process] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.folder / "runs"

    def start(self, *overrides: str, module: str = "mmq_sweeps", **environment: str) -> Forked:
        """Start the sweep's command, on small limits, in the background."""
        (self.folder / "hold").mkdir(exist_ok=True)
        process = Forked(module, ["-m", *FEW, *overrides], self.folder, self._environment(**environment))
        self.started.append(process)
        return process

    def start_elsewhere(self, *overrides: str) -> Forked:
        """Start a sweep in a process that takes itself for a process of another machine."""
        return self.start(*overrides, module="tests.launch.elsewhere")

    def start_anew(self, *overrides: str, **environment: str) -> subprocess.Popen[str]:
        """``start``, by Python as it is started from a shell, and so with workers that are started by it."""
        return self.program("-m", "mmq_sweeps", "-m", *FEW, *overrides, **environment)

    def program(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start Python with these arguments in the background."""
        (self.folder / "hold").mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=self._environment(**environment),
            # Where the tests run in the background of a shell, they inherit an ignored SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        """Run the sweep's command, on small limits, to its end."""
        return run_forked("mmq_sweeps", ["-m", *FEW, *overrides], self.folder, self._environment())

    def launch(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m launch ...``."""
        return run_forked("launch", arguments, self.folder, self._environment())

    def status(self) -> dict[str, Any]:
        """Return the output of ``python -m launch status --json`` for the latest sweep, without another process."""
        store = Store.reading(self.store)
        told = as_json(SweepReader(store, recorded.find(store.root))())
        return json.loads(json.dumps(told))

    def hold(self) -> None:
        """Hold every cell that comes to its metrics from now on."""
        (self.folder / "hold").mkdir(exist_ok=True)
        (self.folder / "hold" / "hold").touch()

    def let_go(self) -> None:
        (self.folder / "hold" / "hold").unlink()

    def held(self, count: int) -> list[int]:
        """Wait until ``count`` processes are held, and return their ids."""
        wait_for(f"{count} held workers", lambda: len(self._held()) >= count, self.started)
        return self._held()

    def records(self) -> dict[str, int]:
        """Return when each record was written, by cell."""
        return {path.parent.name: path.stat().st_mtime_ns for path in self.store.glob("cells/*/record.json")}

    def begun(self) -> Counter[str]:
        """Count how often each cell was begun, by all logs of all sweeps."""
        lines = [line.split(maxsplit=2) for line in self.log_lines()]
        return Counter(cell for _, cell, text in lines if text.startswith("begins: ") and cell != "-")

    def log_lines(self) -> Iterator[str]:
        for path in self.store.glob("sweeps/*/logs/*.log"):
            yield from path.read_text().splitlines()

    def _environment(self, **more: str) -> dict[str, str]:
        return command_environment(HOLD=str(self.folder / "hold"), **more)

    def _held(self) -> list[int]:
        return sorted(int(path.name) for path in (self.folder / "hold").iterdir() if alive(path.name))

    def end(self) -> None:
        """End all processes that a test started."""
        for process in self.started:
            process.kill()
            process.communicate()


def alive(name: str) -> bool:
    """Return whether the process with the id ``name`` runs; a zombie does not."""
    try:
        state = Path(f"/proc/{int(name)}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return False
    return state not in "ZX"


def wait_for(what: str, true: Callable[[], bool], processes: Sequence[Process]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        ended = [process for process in processes if process.poll() is not None]
        if time.monotonic() > deadline or (processes and len(ended) == len(processes)):
            told = [process.communicate()[1] for process in ended]
            raise AssertionError(f"waited for {what}; {told}")
        time.sleep(0.02)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
