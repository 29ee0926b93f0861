"""Make cells and sweeps for tests of planning that need no configuration."""

from __future__ import annotations

from itertools import product
from typing import Any

from mmq_sweeps.config.sweep import Sweep
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.store.record import Record

PARTS = ("vision", "connector", "language")


def cell(*bits: int, method: str = "rtn", model: str = "one", task: str = "captions") -> Cell:
    """Make a cell with these bits for vision, connector and language; 16 leaves a part at full precision."""
    selections: dict[str, dict[str, Any]] = {
        part: {"bits": width, "blocks": ["front", "middle", "end"], "layers": ["attention", "mlp"]}
        for part, width in zip(PARTS, bits, strict=True)
        if width != 16
    }
    return Cell(
        model={"checkpoint": model, "parts": {part: {"module": [part]} for part in PARTS}},
        task={"_target_": "tasks.Caption", "data": task, "metrics": ["cider"]},
        parts=selections,
        method={"_target_": f"methods.{method}.Method"} if selections else None,
        calibration=None,
        names={"model": model, "task": task, "method": method if selections else "none"},
    )


def sweep(cells: list[Cell], **settings: Any) -> Sweep:
    configs = {one.id: {"model": one.model, "task": one.task, "component": one.parts} for one in cells}
    common = {"store": {"dir": "runs"}, "retry": "failed", "output": "table", "tracker": {"_target_": "none"}}
    return Sweep(tuple(cells), configs, {**common, **settings})


def grid(*levels: int, **more: str) -> list[Cell]:
    """Make every assignment of ``levels`` to the three parts, the last part changing slowest."""
    return [cell(vision, connector, language, **more) for language, connector, vision in product(levels, repeat=3)]


def record(one: Cell, status: str = "done", **more: Any) -> Record:
    return Record(id=one.id, status=status, cell=one.effective, names=one.names, **more)
