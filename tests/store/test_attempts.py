"""Cells whose process was killed are retried a limited number of times, which the record states."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from mmq_sweeps.config.sweep import plan
from mmq_sweeps.execution.executor import execute
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.attempts import CrashCounter
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.store import Store
from tests.conftest import SMALL, command_environment


def test_what_ends_leaves_nothing(tmp_path: Path) -> None:
    attempts = CrashCounter.of_cell(Store.open(tmp_path), "cell")
    with attempts.begun():
        assert [one["process"] for one in attempts.unended()]
    assert attempts.unended() == []
    with pytest.raises(KeyboardInterrupt), attempts.begun():
        raise KeyboardInterrupt
    assert attempts.unended() == []


def test_what_is_killed_is_counted(tmp_path: Path) -> None:
    program = (
        "import os, signal\n"
        "from mmq_sweeps.store.attempts import CrashCounter\n"
        "from mmq_sweeps.store.store import Store\n"
        f"with CrashCounter.of_cell(Store.open({str(tmp_path)!r}), 'cell').begun():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for times in (1, 2):
        done = subprocess.run([sys.executable, "-c", program], env=command_environment(), check=False)
        assert done.returncode == -signal.SIGKILL
        assert len(CrashCounter.of_cell(Store.open(tmp_path), "cell").unended()) == times


@pytest.mark.parametrize(("killed", "failed"), [(1, False), (2, True)])
def test_a_cell_that_kills_its_process_is_given_up(
    composed: Callable[..., DictConfig], tmp_path: Path, killed: int, failed: bool
) -> None:
    sweep = plan([composed(*SMALL, "task.limit=4", "method=none", "retries=1", f"store.dir={tmp_path}")])
    store = Store.open(tmp_path)
    (cell,) = sweep.cells
    path = store.record_path(cell.id).with_name("attempts.json")
    path.parent.mkdir()
    path.write_text(json.dumps({"unended": [{"host": "node7", "process": 4, "begun": ""}] * killed}))
    with Progress(1) as progress:
        execute([cell], sweep, Claims(store), progress, lambda record: None)
    record = store.record(cell.id)
    assert record.done is not failed
    assert "WorkerDied: process 4 of node7" in record.attempts["reasons"]
    assert record.attempts["count"] == 2
    if failed:
        assert record.error["class"] == "WorkerDied"
        assert "killed 2 times" in record.error["message"]
    assert not path.exists()
