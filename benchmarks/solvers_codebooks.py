"""Measure k-means codebooks; a section of ``benchmarks/solvers.py``.

kmeans   values of 3 and 4 bits for every row of a full-size linear, against scikit-learn's KMeans on each row (by
         default: k-means++, one start), timed on every eighth row
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Section, correlated_inputs, in_pairs, random_weight
from mmq_sweeps.methods.formats import codebooks

ROWS, COLUMNS = 2560, 2560
BITS = (3, 4)
EVERY = 8


def measure_kmeans(pairs: int) -> dict[str, Any]:
    from sklearn.cluster import KMeans

    x = torch.cat(correlated_inputs(COLUMNS, 4, 1024)).flatten(0, 1)
    importance = x.square().mean(dim=0)
    importance += 0.01 * importance.mean()
    weight = random_weight(ROWS, COLUMNS)
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = codebooks.fit(weight, importance, [2**bits for bits in BITS])

    def theirs() -> None:
        found["theirs"] = [
            [
                KMeans(2**bits, random_state=0).fit(row[:, None].numpy(), sample_weight=importance.numpy()).inertia_
                for row in weight[::EVERY]
            ]
            for bits in BITS
        ]

    timing = in_pairs(ours, theirs, pairs)
    inertia = {
        f"{bits} bits": _inertia(weight[::EVERY], importance, values[::EVERY]) / sum(own)
        for bits, values, own in zip(BITS, found["ours"], found["theirs"], strict=True)
    }
    return {
        "ours": timing["ours_seconds"],
        "theirs, all rows": timing["theirs_seconds"] * EVERY,
        "ratio": timing["ratio"] * EVERY,
        "inertia": inertia,
    }


def _inertia(weight: Tensor, importance: Tensor, values: Tensor) -> float:
    codes = codebooks.nearest(values.float(), weight)
    return float(((weight - values.float().gather(1, codes.long())).double().square() * importance.double()).sum())


def lines_kmeans(found: dict[str, Any]) -> Iterable[str]:
    yield (
        f"{ROWS}x{COLUMNS} at {' and '.join(map(str, BITS))} bits: {found['ours']:.2f} s, scikit-learn "
        f"{found['theirs, all rows']:.2f} s, {found['ratio']:.1f} times (to be at least 5)"
    )
    told = ", ".join(f"{ratio:.3f} at {width}" for width, ratio in found["inertia"].items())
    yield f"inertia, of scikit-learn's: {told} (to be at most 1.01)"


SECTIONS = {"kmeans": Section(measure_kmeans, lines_kmeans)}
