"""Two finished cells on the same items: what their metrics differ by, with a paired 95% bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmq_sweeps.metrics import MetricResult, paired_difference
from mmq_sweeps.record import Record

# Per item of a finished cell, as ``Store.items`` reads them.
Items = Sequence[dict[str, Any]]


def differences(baseline: Record, baseline_items: Items, record: Record, items: Items) -> dict[str, dict[str, Any]]:
    """``{metric: {"difference", "difference_interval", "significant"}}`` of ``record`` from ``baseline``.

    Metrics that one of the two does not have are left out. A ValueError where they are over different items.
    """
    ours, theirs = _results(record, items), _results(baseline, baseline_items)
    found = {}
    for name in ours.keys() & theirs.keys():
        paired = paired_difference(theirs[name], ours[name])
        found[name] = {
            "difference": paired.value,
            "difference_interval": list(paired.interval),
            "significant": paired.significant,
        }
    return found


def _results(record: Record, items: Items) -> dict[str, MetricResult]:
    return {
        name: MetricResult(
            name=name,
            value=metric["value"],
            per_item={item["id"]: item["scores"][name] for item in items if name in item["scores"]},
            interval=(metric["interval"][0], metric["interval"][1]),
            higher_is_better=metric["higher_is_better"],
            totals=_totals(name, items),
        )
        for name, metric in record.metrics.items()
    }


def _totals(name: str, items: Items) -> Any:
    """The counts behind a figure that is no mean of items (BLEU, METEOR); ``None`` for one that is."""
    rows = [item["totals"][name] for item in items if name in item.get("totals", {})]
    return np.array(rows, dtype=np.float64) if rows else None
