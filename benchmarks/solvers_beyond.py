"""Measure methods beyond the papers, and packing; sections of ``benchmarks/solvers.py``.

beyond          coordinate descent against GPTQ with the same factorization, and HQQ against round to nearest:
                seconds and remaining output error on a full-size linear at 2 and 3 bits
beyond_packing  packing and unpacking a matrix of 2,560 x 10,240 codes at every width
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

import torch

from benchmarks.against import seconds
from benchmarks.timing import Section, correlated_inputs, in_pairs, random_weight
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.coordinate_descent import CoordinateDescent
from mmq_sweeps.methods.formats import QuantizedWeight, pack_codes, unpack_codes
from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.methods.hqq import HQQ
from mmq_sweeps.methods.rtn import RoundToNearest

# In BLIP-2 OPT-2.7b, query, key and value projections are 2,560 x 2,560, the second MLP linear is 2,560 x 10,240.
ROWS, COLUMNS = 2560, 2560
PACKED = (2560, 10240)


def measure_beyond(pairs: int) -> dict[str, Any]:
    x = torch.cat(correlated_inputs(COLUMNS, 4, 1024)).flatten(0, 1)
    stats = LayerStats(x.T @ x / len(x), x.abs().mean(dim=0), len(x))
    weight = random_weight(ROWS, COLUMNS)

    def output_error(quantized: QuantizedWeight) -> float:
        error = weight - quantized.dequantize()
        return float(((error @ stats.gram) * error).sum())

    def fresh() -> LayerStats:
        """Return statistics without cached factors, so that each method factors the Gram matrix itself."""
        return LayerStats(stats.gram, stats.mean_abs, stats.count)

    found: dict[str, Any] = {}
    for bits in (2, 3):
        for ours, theirs in ((CoordinateDescent(), GPTQ()), (HQQ(), RoundToNearest())):
            solved: dict[str, QuantizedWeight] = {}

            def solve(method: Any, bits: int = bits, solved: dict[str, QuantizedWeight] = solved) -> None:
                solved[type(method).__name__] = method.quantize([weight], fresh(), method.format(bits)).weights[0]

            timing = in_pairs(lambda solve=solve, it=ours: solve(it), lambda solve=solve, it=theirs: solve(it), pairs)
            names = (type(ours).__name__, type(theirs).__name__)
            errors = [output_error(solved[name]) for name in names]
            found[f"{names[0]} and {names[1]}, {bits} bits"] = {**timing, "error_ratio": errors[0] / errors[1]}
    return found


def beyond_lines(found: dict[str, Any]) -> Iterable[str]:
    for name, one in found.items():
        yield (
            f"{name:32s} {one['ours_seconds']:7.2f} s and {one['theirs_seconds']:6.2f} s "
            f"({1 / one['ratio']:.1f} times), output error {one['error_ratio']:.2f} of the other's"
        )


def measure_packing(pairs: int) -> dict[str, Any]:
    found = {}
    for bits in range(2, 9):
        codes = torch.randint(0, 2**bits, PACKED, dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
        packed = pack_codes(codes, bits)
        found[str(bits)] = {
            "pack_seconds": median(seconds(lambda c=codes, b=bits: pack_codes(c, b)) for _ in range(pairs)),
            "unpack_seconds": median(
                seconds(lambda p=packed, b=bits: unpack_codes(p, PACKED, b)) for _ in range(pairs)
            ),
        }
    return found


def packing_lines(found: dict[str, Any]) -> Iterable[str]:
    for bits, one in found.items():
        yield f"{bits} bits: packed in {one['pack_seconds']:.3f} s, unpacked in {one['unpack_seconds']:.3f} s"


SECTIONS: dict[str, Section] = {
    "beyond": Section(measure_beyond, beyond_lines),
    "beyond_packing": Section(measure_packing, packing_lines),
}
