"""Large libraries are imported once without the garbage collector, which works on as before."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from launch.workers.imports import uncollected

ABSENT = "a_module_that_nothing_imports"


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


class Node:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.own = self


def test_what_is_imported_is_not_looked_at_again() -> None:
    frozen = gc.get_freeze_count()
    with uncollected(ABSENT):
        assert not gc.isenabled()
        kept = [Node() for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(kept)
    assert not any(one is kept[0] for one in gc.get_objects())


def test_garbage_from_before_and_from_later_is_collected() -> None:
    before = weakref.ref(Node())
    with uncollected(ABSENT):
        assert before() is None
    later = weakref.ref(Node())
    gc.collect()
    assert later() is None


def test_an_import_that_fails_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(ImportError), uncollected(ABSENT):
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected(ABSENT):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_module_that_is_there_changes_nothing() -> None:
    frozen = gc.get_freeze_count()
    assert "sys" in sys.modules
    with uncollected("sys"):
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


LEFT = """
from launch.workers.imports import uncollected
class Node:
    def __init__(self):
        self.own = self
    def __del__(self):
        print("collected")
with uncollected("absent"):
    node = Node()
"""


def test_what_is_frozen_is_collected_when_the_process_ends() -> None:
    """Libraries made with nanobind report objects that are left at the end on standard error."""
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, check=True)
    assert done.stdout == "collected\n"
