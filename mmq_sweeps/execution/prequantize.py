"""Quantizing for a whole sweep at once: each work is done by one process, and the others read what it left.

A work is what one pass over calibration data can serve: a part, and the samples that it is calibrated on. Who holds a
work's lock computes all that the sweep lacks of it, for every method and bit-width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from mmq_sweeps.errors import StoreError
from mmq_sweeps.execution.run_cell import Bench
from mmq_sweeps.quantization.quantize import KIND, Request
from mmq_sweeps.reporting.progress import Reporter
from mmq_sweeps.store.attempts import CrashCounter
from mmq_sweeps.store.locks import Lock

# After so many processes that were killed at the same work it is left to the cells, of which those fail that must.
KILLED = 1


def share(
    needed: Sequence[Request],
    wanted: Sequence[Request],
    sweep: str,
    bench: Bench,
    progress: Reporter,
    check_stop: Callable[[], None],
) -> None:
    """See to it that ``needed`` is in the store, and compute of ``wanted``, all of ``sweep``'s, what others do not.

    What fails here fails its own cell later. ``check_stop`` is called between works and may raise.
    """
    whole = _works(wanted)
    left = {key: work for key, work in _works(needed).items() if not _stored(work, bench)}
    while left:
        check_stop()
        key, lock = _take(left, bench, check_stop)
        if lock is not None:
            with lock:
                _compute([*left[key], *whole.get(key, [])], sweep, bench, progress)
        del left[key]
        left = {key: work for key, work in left.items() if not _stored(work, bench)}


def _works(requests: Sequence[Request]) -> Mapping[str, list[Request]]:
    """``requests`` by the key of their work."""
    works: dict[str, list[Request]] = {}
    for request in requests:
        works.setdefault(request.work, []).append(request)
    return works


def _stored(work: Sequence[Request], bench: Bench) -> bool:
    return all(bench.store.has_artifact(KIND, request.key) for request in work)


def _take(
    left: Mapping[str, Sequence[Request]], bench: Bench, check_stop: Callable[[], None]
) -> tuple[str, Lock | None]:
    """A work and its lock; None with it once another process has done the work. Processes begin at different works."""
    first = os.getpid() % len(left)
    order = [*left][first:] + [*left][:first]
    for key in order:
        if (lock := bench.store.lock("quantize", key)) is not None:
            return key, lock
    key = order[0]
    return key, bench.store.acquire("quantize", key, lambda: _stored(left[key], bench), check_stop)


def _compute(work: Sequence[Request], sweep: str, bench: Bench, progress: Reporter) -> None:
    distinct = {request.key: request for request in work}
    missing = [request for key, request in distinct.items() if not bench.store.has_artifact(KIND, key)]
    if not missing:
        return
    attempts = CrashCounter.of_work(bench.store, f"{sweep}-{missing[0].work}")
    if len(attempts.unended()) >= KILLED:
        progress.say("warning: shared quantization was begun and its process killed; each cell tries alone")
        return
    progress.begin("shared quantization")
    try:
        with attempts.begun():
            bench.compute(missing, progress)
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - each cell tries again on its own and records its own failure
        progress.say(f"warning: shared quantization stopped ({type(error).__name__}: {error}); each cell tries alone")
