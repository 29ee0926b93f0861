"""Import large libraries without the garbage collector walking over them."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected(module: str) -> Iterator[None]:
    """Import ``module`` inside the context; the garbage collector skips all objects that exist at its end.

    Torch and transformers make half a million objects that stay. Python's collector walks over all of them again whenever
    there are a quarter more, a second in all on the way to a first cell. Objects are still freed when the last reference
    goes; cycles among those that exist at the end of the context only when the process ends. Does nothing if ``module``
    is imported already, so a process does this once.
    """
    if module in sys.modules:
        yield
        return
    gc.collect()  # Cycles that are garbage already would stay.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        # Libraries look at the end of the process whether objects of theirs were left.
        atexit.register(gc.unfreeze)
        if enabled:
            gc.enable()
