"""Failure policy: any exception marks its cell failed, and the sweep goes on.

Refused memory is retried once with half the batch. A cell whose process was killed is retried by the next process, up to
``session.retries`` times; after that it is recorded as failed.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmq_sweeps.errors import OutOfMemory, StoreError
from mmq_sweeps.execution.run_cell import Items, new_record, run_cell
from mmq_sweeps.execution.session import Session
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.memory import give_back_memory, peak_memory, reset_peak_memory
from mmq_sweeps.reporting.progress import Reporter
from mmq_sweeps.store.attempts import CrashCounter
from mmq_sweeps.store.record import Record, outcome

logger = logging.getLogger(__name__)


def record_cell(cell: Cell, session: Session, progress: Reporter) -> tuple[Record, Items]:
    """Run ``cell`` and save its record, of a failure as well. Raises only if the store cannot be written."""
    crashes = CrashCounter.of_cell(session.store, cell.id)
    reasons = [f"WorkerDied: process {crash['process']} of {crash['host']}" for crash in crashes.unended()]
    if len(reasons) > session.retries:
        record = replace(new_record(cell), error=_worker_died(reasons), attempts=_attempts(reasons[:-1]))
        crashes.forget()
        return _saved(record, [], session), []
    with crashes.begun():
        record, items = _try_once(cell, session, progress)
        smaller = session.with_half_batches()
        if record.error and record.error["class"] == OutOfMemory.__name__ and smaller is not None:
            reasons.append(f"OutOfMemory: {record.error['message']}")
            logger.warning("%s: %s; retrying with half the batch", cell.title(), record.error["message"])
            record, items = _try_once(cell, smaller, progress)
        return _saved(replace(record, attempts=_attempts(reasons)), items, session), items


def _try_once(cell: Cell, session: Session, progress: Reporter) -> tuple[Record, Items]:
    """Return the record of one try and its items; after a failure the model is at full precision again."""
    reset_peak_memory()
    try:
        with session.restored_on_error():
            record, items = run_cell(cell, session, progress)
        return replace(record, peak_memory_bytes=peak_memory()), items
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - an error marks its own cell failed, and the sweep continues
        failed = failed_record(cell, error)
        if isinstance(error, OutOfMemory):
            session.free_memory()
    # Outside the handler, which keeps the failed frames and their tensors alive.
    give_back_memory()
    return replace(failed, peak_memory_bytes=peak_memory()), []


def failed_record(cell: Cell, error: Exception) -> Record:
    """Return the record, not yet saved, of a cell that failed with ``error``."""
    return replace(new_record(cell), error=_described(error))


def _described(error: Exception) -> dict[str, Any]:
    described: dict[str, Any] = {
        "class": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    return described | ({"asked_bytes": error.asked_bytes} if isinstance(error, OutOfMemory) else {})


def _attempts(reasons: Sequence[str]) -> dict[str, Any]:
    """Count the tries of a cell; ``reasons`` say why each but the last did not count."""
    return {"count": len(reasons) + 1, "reasons": list(reasons)}


def _worker_died(reasons: Sequence[str]) -> dict[str, Any]:
    message = (
        f"the process that ran it was killed {len(reasons)} times, as by a lack of memory or the end of its job; it is "
        "tried again with retry=failed"
    )
    return {"class": "WorkerDied", "message": message, "traceback": "\n".join(reasons)}


def _saved(record: Record, items: Items, session: Session) -> Record:
    try:
        return session.store.save(record, items if record.done else None)
    except StoreError:
        if record.done:
            logger.warning("measured but not recorded: %s: %s", record.id, outcome(record))
        raise
