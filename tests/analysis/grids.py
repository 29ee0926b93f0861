"""Make stores with invented figures, for tests of the analysis that do not care where figures come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

PARTS = ("vision", "connector", "language")
Selection = Mapping[str, int]


def stored(folder: Path, cells: Mapping[str, Sequence[tuple[Selection, float, float]]], items: int = 40) -> None:
    """Fill a store from ``{method: [(bits by part, bpw, score)]}``; items lie about the score, alike in every cell."""
    store = Store.open(folder)
    noise = np.random.default_rng(0).normal(0, 0.2, items)
    noise -= noise.mean()
    for method, rows in cells.items():
        for bits, bpw, score in rows:
            saved(store, record(method, bits, bpw, score), score + noise)


def saved(store: Store, one: Record, scores: Sequence[float] | np.ndarray | None = None) -> None:
    if scores is None:
        store.save(one)
        return
    value = float(np.mean(scores))
    metrics = {"cider": {**one.metrics["cider"], "value": value}}
    store.save(
        Record(**{**one.__dict__, "metrics": metrics}),
        [
            # Cells that score alike say the same.
            {"id": str(index), "prediction": f"answer {index} of {value:.6f}", "scores": {"cider": float(score)}}
            for index, score in enumerate(scores)
        ],
    )


def record(method: str, bits: Selection, bpw: float, score: float) -> Record:
    whole = {"blocks": ["front", "middle", "end"], "layers": ["attention", "mlp"]}
    return Record(
        id="-".join([method, *(f"{part}{width}" for part, width in bits.items())]),
        status="done",
        cell={
            "model": {"checkpoint": "m", "parts": {part: {} for part in PARTS}},
            "task": {},
            "parts": {part: {"bits": width, **whole} for part, width in bits.items()},
            "method": None,
        },
        names={"model": "m", "task": "t", "method": method if bits else "none"},
        metrics={
            "cider": {"value": score, "interval": [score - 0.1, score + 0.1], "higher_is_better": True, "count": 40}
        },
        size={
            "total": {"bpw_paper": bpw, "bpw_exact": bpw + 0.1, "size_bytes": 100},
            "parts": {
                part: {"bpw_paper": bpw, "bpw_exact": bpw, "size_bytes": 30, "quantized_weights": 100 * (part in bits)}
                for part in PARTS
            },
        },
        seconds={"evaluate": 1.0},
        created="2026-01-01T00:00:00.000+00:00",
    )
