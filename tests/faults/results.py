"""Make records for tests of the analysis, and run its commands."""

from __future__ import annotations

import sys
from io import StringIO

import pytest
from rich.console import Console

from analysis.__main__ import main
from mmq_sweeps.reporting.table import rows, show
from mmq_sweeps.store.record import Record
from tests.faults.cells import PARTS, items, made


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["analysis", *map(str, arguments)])
    main()


def shown(*records: Record, width: int = 80) -> str:
    """Return the table that a sweep of ``records`` prints on a terminal of ``width`` columns."""
    by_id = {record.id: record for record in records}
    console = Console(file=StringIO(), width=width)
    show(rows(records, lambda cell_id: items(by_id[cell_id])), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


FULL = made("none", {}, 16.0, {"cider": 5.88})
WHOLE4 = dict.fromkeys(PARTS, 4)
# Less is better of their metric.
LOWER = [
    made("none", {}, 16.0, {"wer": 0.10}, lower=["wer"]),
    made("gptq", {"vision": 8}, 8.0, {"wer": 0.101}, lower=["wer"]),
    made("gptq", {"language": 8}, 7.0, {"wer": 0.11}, lower=["wer"]),
    made("gptq", {"vision": 2}, 3.0, {"wer": 0.94}, lower=["wer"]),
    made("rtn", {"vision": 8}, 8.0, {"wer": 0.30}, lower=["wer"]),
]
