"""Layer statistics as artifacts, so that a later method or bit-width needs no pass over the calibration data.

They are stored per unit, at full-precision inputs. None are stored for methods that need the calibration tokens
themselves, nor behind quantized units. Those of vision and text tokens apart lie in an artifact of their own beside those of
all tokens, which are the same with and without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.quantization.folding import Fold
from mmq_sweeps.quantization.shared_stats import SharedStats, TokenKinds
from mmq_sweeps.quantization.targets import Unit
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.store import Store


def write(store: Store, key: str, unit: Unit, stats: Sequence[SharedStats]) -> None:
    """Store those of ``stats`` whose input feeds linears of ``unit``."""
    tensors: dict[str, Tensor] = {}
    described: list[dict[str, Any]] = []
    for shared in stats:
        linears = [name for name in shared.linears if name in unit.linears]
        if not linears:
            continue
        tensors[f"{len(described)}.gram"] = shared.stats.gram
        tensors[f"{len(described)}.mean_abs"] = shared.stats.mean_abs
        fold = asdict(shared.fold) if shared.fold is not None and set(shared.fold.linears) == set(linears) else None
        described.append(
            {"linears": linears, "count": shared.stats.count, "not_finite": shared.not_finite, "fold": fold}
        )
    store.artifacts.save(ArtifactKind.STATISTICS, key, tensors, {"unit": unit.name, "inputs": described})


def read(store: Store, key: str) -> list[SharedStats] | None:
    """Return the statistics that ``write`` stored, or None."""
    artifact = store.artifacts.load(ArtifactKind.STATISTICS, key)
    if artifact is None:
        return None
    tensors, described = artifact
    return [
        SharedStats(
            tuple(one["linears"]),
            LayerStats(tensors[f"{place}.gram"], tensors[f"{place}.mean_abs"], one["count"]),
            one["not_finite"],
            one["fold"] and Fold(tuple(one["fold"]["linears"]), one["fold"]["source"], one["fold"]["start"]),
        )
        for place, one in enumerate(described["inputs"])
    ]


def write_kinds(store: Store, key: str, unit: Unit, stats: Sequence[SharedStats]) -> None:
    """Store the statistics of vision and text tokens apart, of inputs that feed linears of ``unit`` and have both."""
    tensors: dict[str, Tensor] = {}
    described: list[dict[str, Any]] = []
    for shared in stats:
        linears = [name for name in shared.linears if name in unit.linears]
        if not linears or shared.kinds is None:
            continue
        both = {"vision": shared.kinds.vision, "text": shared.kinds.text}
        for kind, own in both.items():
            tensors |= {f"{len(described)}.{kind}.gram": own.gram, f"{len(described)}.{kind}.mean_abs": own.mean_abs}
        described.append({"linears": linears, "counts": {kind: own.count for kind, own in both.items()}})
    store.artifacts.save(ArtifactKind.STATISTICS, key, tensors, {"unit": unit.name, "inputs": described})


def with_kinds(store: Store, key: str, stats: Sequence[SharedStats]) -> list[SharedStats] | None:
    """Return ``stats`` with the kinds that ``write_kinds`` stored, or None."""
    artifact = store.artifacts.load(ArtifactKind.STATISTICS, key)
    if artifact is None:
        return None
    tensors, described = artifact
    found = {}
    for place, one in enumerate(described["inputs"]):
        vision, text = (
            LayerStats(tensors[f"{place}.{kind}.gram"], tensors[f"{place}.{kind}.mean_abs"], one["counts"][kind])
            for kind in ("vision", "text")
        )
        found[tuple(one["linears"])] = TokenKinds(vision, text)
    return [replace(shared, kinds=found.get(shared.linears)) for shared in stats]
