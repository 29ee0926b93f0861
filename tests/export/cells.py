"""Finished cells to export, measured in this process, and exports that are verified in it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mmq_sweeps.config.sweep import plan
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.execution.failure_policy import record_cell
from mmq_sweeps.execution.session import Sessions
from mmq_sweeps.export import verify
from mmq_sweeps.export.export import Exported, Order, export
from mmq_sweeps.export.source import Source, only
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.store import Store
from tests.configurations import composed

# Few items: the question is whether two models are the same, not how good they are.
FEW = ("task.limit=4", "calibration.samples=4", "calibration.batch_size=4", "tracker=none")
# A mix of widths and formats in a cell that compressed-tensors holds.
MIXED = (
    "method=rtn", "method.symmetric=true", "component.vision.bits=4", "component.vision.group_size=16",
    "component.connector.bits=8", "component.language.bits={front: 3, middle: 5, end: 2}",
)  # fmt: skip


def measured(store: Path, *overrides: str) -> Source:
    """Measure a cell into ``store`` and return it as the source of an export."""
    sweep = plan([composed(*FEW, *overrides, f"store.dir={store}")])
    opened = Store.open(store)
    with quiet_libraries(), Progress(1) as progress:
        record, _ = record_cell(sweep.cells[-1], Sessions(sweep, opened).open(sweep.cells[-1]), progress)
    assert record.done, record.error
    return Source(opened, record, only(sweep, record), {"the sweep": "python -m mmq_sweeps"})


def exported(source: Source, out: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Exported:
    """Export, and verify in this process, which costs no imports; other tests verify in a new process."""
    monkeypatch.setattr(verify, "in_new_process", lambda asked: verify.answer(json.loads(json.dumps(asked))))
    with Progress(1) as progress:
        return export(source, Order(out, **more), progress)


def header(path: Path) -> Mapping[str, Any]:
    """Return the header of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    found = json.loads(content[8 : 8 + length])
    found.pop("__metadata__")
    return found
