"""A task whose cells take some seconds longer without computing, to test events that hit running cells."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmq_sweeps.metrics import MetricResult
from mmq_sweeps.tasks.caption import CaptionTask


@dataclass(frozen=True, eq=False)
class WaitingTask(CaptionTask):
    """``task._target_=tests.launch.slurm.waiting.WaitingTask +task.seconds=1``: captions whose scoring takes a second more.

    In a job that SLURM started again it takes ``again`` seconds more, if that is given.
    """

    seconds: float = 0.0
    again: float | None = None

    def score(self, predictions: Mapping[str, str], cache: Path) -> dict[str, MetricResult]:
        restarted = self.again is not None and "SLURM_RESTART_COUNT" in os.environ
        time.sleep(self.again if restarted else self.seconds)
        return super().score(predictions, cache)


@dataclass(frozen=True, eq=False)
class GatedTask(CaptionTask):
    """Captions whose scoring waits until a file of the folder ``gate`` lets the job pass.

    The file is named after the task of the array. A file with the text ``one`` lets a single cell pass and is removed.
    """

    gate: str = ""

    def score(self, predictions: Mapping[str, str], cache: Path) -> dict[str, MetricResult]:
        file = Path(self.gate, os.environ.get("SLURM_ARRAY_TASK_ID", "single"))
        while not file.exists():
            time.sleep(0.1)
        if file.read_text() == "one":
            file.unlink()
        return super().score(predictions, cache)
