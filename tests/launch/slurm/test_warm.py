"""A forked worker looks the same as a started worker to the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import command_environment
from tests.launch.slurm.warm import serving

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with serving(tmp_path / "workers") as environment:

        def started(*arguments: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, "-m", "launch.workers.worker", *arguments],
                cwd=tmp_path, env={**os.environ, **command_environment(**environment)}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip

        yield started


def worker_of(process: subprocess.Popen[str], store: Path) -> int:
    """Return the process whose working directory is ``store``, other than the started process."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for own in Path("/proc").glob("[0-9]*"):
            try:
                if int(own.name) != process.pid and (own / "cwd").readlink() == store:
                    return int(own.name)
            except OSError:
                continue
        time.sleep(0.05)
    raise AssertionError("no worker was forked")


def test_status_output_and_signals_are_the_worker_s(start: Start, tmp_path: Path) -> None:
    refused = start("--store", "runs", "--sweep", "none", "--name", "one")
    told = refused.communicate('{"cells": [], "help": []}', timeout=120)
    assert refused.returncode == 2
    assert "error: " in told[1]

    # Each waits for its standard input.
    killed = start("--store", "runs", "--sweep", "none", "--name", "two")
    os.kill(worker_of(killed, tmp_path), signal.SIGKILL)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL

    asked = start("--store", "runs", "--sweep", "none", "--name", "three")
    worker_of(asked, tmp_path)
    asked.send_signal(signal.SIGTERM)
    assert asked.wait(timeout=120) == -signal.SIGTERM  # Its standard input stays open until then.
    asked.communicate()

    gone = start("--store", "runs", "--sweep", "none", "--name", "four")
    worker = worker_of(gone, tmp_path)
    gone.kill()
    gone.communicate(timeout=120)
    end = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
