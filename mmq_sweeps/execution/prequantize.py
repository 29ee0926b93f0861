"""Quantize for a whole sweep at once: one process does each calibration pass, and the others read its results.

A calibration pass serves all units of one part that are calibrated on the same samples. The process that holds the lock of
a pass computes every unit that the sweep lacks of it, for all methods and bit-widths.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmq_sweeps.errors import StoreError
from mmq_sweeps.execution.session import Session
from mmq_sweeps.grouping import grouped
from mmq_sweeps.quantization.requests import Request
from mmq_sweeps.reporting.progress import Reporter
from mmq_sweeps.store.attempts import CrashCounter
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.locks import Lock

logger = logging.getLogger(__name__)
# After this many crashes, stop sharing a calibration pass: each cell quantizes on its own.
MAX_CRASHES = 1


@dataclass(frozen=True)
class Prequantizer:
    """Puts quantized units into the store for the sweep ``sweep``; ``check_stop`` is called between passes and may raise."""

    session: Session
    sweep: str
    progress: Reporter
    check_stop: Callable[[], None]

    def run(self, needed: Sequence[Request], wanted: Sequence[Request]) -> None:
        """Put ``needed`` into the store, and with each pass what others ``wanted`` of it and nobody computed yet.

        A unit that fails here fails its own cell later.
        """
        whole, passes = (grouped(units, lambda unit: unit.calibration_pass) for units in (wanted, needed))
        left = {key: units for key, units in passes.items() if not self._stored(units)}
        while left:
            self.check_stop()
            key, lock = self._take(left)
            if lock is not None:
                with lock:
                    self._compute([*left[key], *whole.get(key, [])])
            del left[key]
            left = {key: units for key, units in left.items() if not self._stored(units)}

    def _stored(self, units: Sequence[Request]) -> bool:
        return all(self.session.store.artifacts.has(ArtifactKind.QUANTIZED, request.key) for request in units)

    def _take(self, left: Mapping[str, Sequence[Request]]) -> tuple[str, Lock | None]:
        """Return a pass and its lock, None if another process finished it. Processes begin at different passes."""
        store = self.session.store
        first = os.getpid() % len(left)
        order = [*left][first:] + [*left][:first]
        for key in order:
            if (lock := store.locks.lock("quantize", key)) is not None:
                return key, lock
        key = order[0]
        return key, store.locks.acquire("quantize", key, lambda: self._stored(left[key]), self.check_stop)

    def _compute(self, units: Sequence[Request]) -> None:
        store = self.session.store
        distinct = {request.key: request for request in units}
        missing = [request for key, request in distinct.items() if not store.artifacts.has(ArtifactKind.QUANTIZED, key)]
        if not missing:
            return
        crashes = CrashCounter.of_work(store, f"{self.sweep}-{missing[0].calibration_pass}")
        if len(crashes.unended()) >= MAX_CRASHES:
            logger.warning("a process was killed at the shared quantization; each cell quantizes on its own")
            return
        self.progress.begin("shared quantization")
        try:
            with crashes.begun():
                self.session.compute(missing, self.progress)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - each cell tries again on its own and records its own failure
            logger.warning(
                "shared quantization stopped (%s: %s); each cell quantizes on its own", type(error).__name__, error
            )
