"""Records are logged beside the work, in order, and all of them, even if the tracker fails."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mmq_sweeps.reporting.background import WAITING, Background
from mmq_sweeps.store.record import Record


def record(number: int) -> Record:
    return Record(id=str(number), status="done", cell={"parts": {}}, names={})


def test_logging_waits_for_nothing_and_leaving_for_everything() -> None:
    logged: list[str] = []
    free = threading.Event()

    def log(one: Record, items: Any, samples: Any) -> None:  # noqa: ARG001
        free.wait()
        logged.append(one.id)

    with Background(log) as background:
        for number in range(WAITING):
            background(record(number), [], [])
        assert logged == []
        free.set()
    assert logged == [str(number) for number in range(WAITING)]


def test_an_error_beside_it_waits_as_well() -> None:
    logged: list[str] = []

    def interrupted() -> None:
        with Background(lambda one, *_: logged.append(one.id)) as background:
            background(record(1), [], [])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert logged == ["1"]


def test_a_tracker_that_fails_costs_a_warning(said: list[str]) -> None:
    logged: list[str] = []

    def log(one: Record, items: Any, samples: Any) -> None:  # noqa: ARG001
        if one.id == "1":
            raise RuntimeError("no such project")
        logged.append(one.id)

    with Background(log) as background:
        for number in range(3):
            background(record(number), [], [])
    assert logged == ["0", "2"]
    assert said == ["warning: the tracker did not take cell 1: RuntimeError: no such project"]
