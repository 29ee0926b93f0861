"""A metric that holds a cell until it is let go, to test events that hit a worker in the middle of a cell."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from mmq_sweeps.metrics.base import Floats, Scores, mean_of_totals

# A test that fails must not leave a process that waits for ever.
LONGEST_SECONDS = 600


class Hold:
    """A metric that waits while ``$HOLD/hold`` exists, and writes ``$HOLD/PID`` to name the waiting process."""

    name = "hold"
    needs = "captions"
    higher_is_better = True

    def prepare(self, references: object) -> int:  # noqa: ARG002
        return 0

    def score(self, prepared: int, predictions: object) -> Scores:  # noqa: ARG002
        folder = Path(os.environ["HOLD"])
        here = folder / str(os.getpid())
        here.touch()
        deadline = time.monotonic() + LONGEST_SECONDS
        while (folder / "hold").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        here.unlink()
        return Scores.mean(np.ones(len(predictions.tokens)))  # type: ignore[attr-defined]

    def aggregate(self, totals: Floats, count: int) -> Floats:
        return mean_of_totals(totals, count)
