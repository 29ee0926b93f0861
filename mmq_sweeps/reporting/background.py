"""Log in the background: a thread sends records to the tracker, in order, while the next cell runs."""

from __future__ import annotations

import logging
from queue import Queue
from threading import Thread
from typing import Any, Self

from mmq_sweeps.reporting.trackers import Log, Samples
from mmq_sweeps.store.record import Record

logger = logging.getLogger(__name__)
# Size of the queue. A tracker slower than the cells then blocks them instead of filling the memory.
WAITING = 32
Entry = tuple[Record, list[dict[str, Any]], Samples]


class Background:
    """A ``Log`` that returns at once, unless its queue is full. Leaving the context, even by an exception, drains the queue."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._entries: Queue[Entry | None] = Queue(WAITING)
        self._thread = Thread(target=self._work, name="tracker", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._entries.put(None)
        self._thread.join()

    def __call__(self, record: Record, items: list[dict[str, Any]], samples: Samples) -> None:
        self._entries.put((record, items, samples))

    def _work(self) -> None:
        while (entry := self._entries.get()) is not None:
            try:
                self._log(*entry)
            except Exception as error:  # noqa: BLE001 - a tracker that fails costs a warning, never a cell
                logger.warning("the tracker did not take cell %s: %s: %s", entry[0].id, type(error).__name__, error)
