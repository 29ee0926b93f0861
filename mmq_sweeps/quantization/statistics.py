"""Layer statistics as artifacts: a method or a bit-width that comes later needs no pass over the calibration data.

They are those of one unit at full-precision inputs. For a method that needs the calibration tokens themselves, and behind
quantized units, there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.quantization.calibration import SharedStats
from mmq_sweeps.quantization.targets import Unit
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.store import Store


def write(store: Store, key: str, unit: Unit, stats: Sequence[SharedStats]) -> None:
    """Keep those of ``stats`` that linears of ``unit`` are given."""
    tensors: dict[str, Tensor] = {}
    described: list[dict[str, Any]] = []
    for shared in stats:
        linears = [name for name in shared.linears if name in unit.linears]
        if not linears:
            continue
        tensors[f"{len(described)}.gram"] = shared.stats.gram
        tensors[f"{len(described)}.mean_abs"] = shared.stats.mean_abs
        described.append({"linears": linears, "count": shared.stats.count, "not_finite": shared.not_finite})
    store.save_artifact(ArtifactKind.STATISTICS, key, tensors, {"unit": unit.name, "inputs": described})


def read(store: Store, key: str) -> list[SharedStats] | None:
    """What ``write`` kept; ``None`` where there is nothing."""
    artifact = store.artifact(ArtifactKind.STATISTICS, key)
    if artifact is None:
        return None
    tensors, described = artifact
    return [
        SharedStats(
            tuple(one["linears"]),
            LayerStats(tensors[f"{place}.gram"], tensors[f"{place}.mean_abs"], one["count"]),
            one["not_finite"],
        )
        for place, one in enumerate(described["inputs"])
    ]
