"""Compare AWQ with autoawq's own solver; sections of ``benchmarks/solvers.py``.

    awq_parity  chosen scales, and our output error over the library's, on embedded and random layers
    awq_block   scale and clip search for the six linears of a block of BLIP-2 OPT-2.7b at 4 bits, groups of 128
    awq_widths  attention linears of that block at seven bit-widths, jointly and separately
    awq_memory  memory for solving that block, besides weights and Gram matrices (Linux only)

In ``awq_block`` both get the same 2,048 tokens and candidates. The library's clip search takes a quarter of an hour on
two cores, at the same cost for each row, so it is timed on the first 64 rows of each linear and scaled to all. As it
does for an OPT, the library leaves query and key unclipped; ours clips all six.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.against import seconds
from benchmarks.solvers_gptq import BLOCK
from benchmarks.solvers_parity import embedded_layers
from benchmarks.timing import Section, correlated_inputs, forget_peak, progress, random_weight, resident
from mmq_sweeps.methods.autoawq import AutoAWQ, SharedInput, library_solver
from mmq_sweeps.methods.awq import AWQ
from mmq_sweeps.methods.awq_search.clip import best_clipped
from mmq_sweeps.methods.awq_search.errors import output_error
from mmq_sweeps.methods.awq_search.scales import Scale
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.formats import Format, QuantizedWeight

BITS = (2, 3, 4, 5, 6, 7, 8)
FORMAT = Format(4, 128)
BATCHES, TOKENS = 4, 512
TIMED_ROWS = 64
OURS = AWQ(group_size=128, duo_scaling=True)


def statistics(x: Tensor) -> LayerStats:
    return LayerStats(x.T @ x / len(x), x.abs().mean(dim=0), len(x), x)


def inputs(columns: int, batches: int = BATCHES, seed: int = 0) -> Tensor:
    """Return tokens ``[batches * 512, columns]``; every hundredth channel is an outlier."""
    x = torch.cat(correlated_inputs(columns, batches, TOKENS, seed)).flatten(0, 1)
    x[:, ::100] *= 10
    return x


def loss(weights: Iterable[Tensor], solved: Iterable[QuantizedWeight], gram: Tensor) -> float:
    return sum(
        float(output_error(weight - one.dequantize(), gram).sum()) for weight, one in zip(weights, solved, strict=True)
    )


def measure_parity(_pairs: int) -> dict[str, Any]:
    layers = [("embedded", [weight], gram_inputs) for _, weight, gram_inputs in embedded_inputs()]
    for seed in range(3):
        x = inputs(256, 1, seed)
        layers.append(("random", [random_weight(rows, 256, seed + rows) for rows in (256, 192)], x))
    rows = []
    for bits, group, symmetric in itertools.product((2, 3, 4, 8), ("channel", 128, 32), (False, True)):
        progress(f"awq_parity: {bits} bits, group_size={group}, symmetric={symmetric}")
        for kind in ("embedded", "random"):
            form = Format(bits, group, symmetric)
            found = [compare(weights, x, form) for of, weights, x in layers if of == kind and fits(x, group)]
            row = {"bits": bits, "group_size": group, "symmetric": symmetric, "layers": kind, "count": len(found)}
            row["equal_scales"] = sum(equal for equal, _ in found)
            row["mean_ratio"] = sum(ratio for _, ratio in found) / len(found)
            row["largest_ratio"] = max(ratio for _, ratio in found)
            rows.append(row)
    return {"rows": rows}


def fits(x: Tensor, group: int | str) -> bool:
    return not isinstance(group, int) or x.shape[1] % group == 0


def embedded_inputs() -> Iterable[tuple[str, Tensor, Tensor]]:
    """Yield name, weight and inputs of every linear of the embedded model's parts.

    The inputs are as many rows as the Gram matrix has, chosen to have that Gram matrix, so that both solvers get the
    same data.
    """
    for name, weight, gram in embedded_layers():
        values, vectors = torch.linalg.eigh(gram.double())
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        yield name, weight, (root * len(root) ** 0.5).float()


def compare(weights: list[Tensor], x: Tensor, form: Format) -> tuple[bool, float]:
    """Return whether both chose the same scale, and our output error over the library's."""
    stats = statistics(x)
    theirs = AutoAWQ(form.group_size, form.symmetric).quantize(weights, stats, form).weights
    ours = AWQ(form.group_size, form.symmetric, duo_scaling=True).quantize(weights, stats, form).weights
    scales = [one[0].input_scale.float() for one in (theirs, ours)]  # type: ignore[union-attr]
    return torch.allclose(*scales, rtol=2e-3), loss(weights, ours, stats.gram) / loss(weights, theirs, stats.gram)


def parity_lines(found: Mapping[str, Any]) -> Iterable[str]:
    yield "bits  group    symmetric  layers    count  equal scales  error over theirs: mean  largest"
    for row in found["rows"]:
        yield (
            f"{row['bits']:4}  {row['group_size']!s:7}  {row['symmetric']!s:9}  {row['layers']:8}  {row['count']:5}  "
            f"{row['equal_scales']:12}  {row['mean_ratio']:23.4f}  {row['largest_ratio']:7.4f}"
        )


def block_weights() -> dict[str, dict[str, Tensor]]:
    return {
        shared: {name: random_weight(*shape, seed=index) for index, (name, shape) in enumerate(linears.items())}
        for shared, linears in BLOCK.items()
    }


def measure_block(pairs: int) -> dict[str, Any]:
    """Time both solvers on the whole block, pair by pair, and compare their errors on the rows clipped by the library."""
    names = [f"{whose}_{what}" for whose in ("ours", "theirs") for what in ("scale", "clip", "loss")]
    timings = []
    for pair in range(pairs):
        found = dict.fromkeys(names, 0.0)
        for linears in block_weights().values():
            stats = statistics(inputs(next(iter(linears.values())).shape[1]))
            for turn in (time_ours, time_theirs)[:: -1 if pair % 2 else 1]:
                turn(linears, stats, found)
            progress(f"awq_block, pair {pair + 1} of {pairs}, {', '.join(linears)}: {rounded_seconds(found)}")
        for whose in ("ours", "theirs"):
            found[whose] = found[f"{whose}_scale"] + found[f"{whose}_clip"]
        timings.append(found)
    both = {
        "ratios": [found["theirs"] / found["ours"] for found in timings],
        "scale_ratios": [found["theirs_scale"] / found["ours_scale"] for found in timings],
        "loss_ratios": [found["ours_loss"] / found["theirs_loss"] for found in timings],
    }
    return {
        **{f"{name}_seconds": median(found[name] for found in timings) for name in timings[0] if "loss" not in name},
        **{name.removesuffix("s"): median(values) for name, values in both.items()},
        **both,
    }


def rounded_seconds(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f} s" for name, value in found.items() if "loss" not in name)


def time_ours(linears: dict[str, Tensor], stats: LayerStats, found: dict[str, float]) -> None:
    weights = list(linears.values())
    scales: list[list[Scale]] = []
    solved: list[QuantizedWeight] = []
    # Together these are OURS.quantize.
    found["ours_scale"] += seconds(lambda: scales.extend(OURS.scales(weights, stats, [FORMAT])))
    found["ours_clip"] += seconds(
        lambda: solved.extend(best_clipped(weights, scales[0], stats.gram, FORMAT, OURS.cuts())[1])
    )
    for weight, one in zip(weights, solved, strict=True):
        rows = (weight - one.dequantize())[:TIMED_ROWS]
        found["ours_loss"] += float(output_error(rows, stats.gram).sum())


def time_theirs(linears: dict[str, Tensor], stats: LayerStats, found: dict[str, float]) -> None:
    weights, x = list(linears.values()), stats.inputs
    assert x is not None
    solver, module = library_solver(FORMAT, x.shape[1], True), SharedInput(weights)
    scales: list[Tensor] = []
    found["theirs_scale"] += seconds(
        lambda: scales.append(solver._search_best_scale(module, module.before, list(module.linears), x, module)[2])
    )
    scaled_inputs = x / scales[0]
    for name, weight in linears.items():
        scaled = weight[:TIMED_ROWS] * scales[0]
        layer = nn.Linear(len(x[0]), TIMED_ROWS, bias=False)
        layer.weight = nn.Parameter(scaled, requires_grad=False)
        clips: list[Any] = []
        took = seconds(lambda: clips.extend(solver._search_best_clip(module, {name: layer}, {name: scaled_inputs})))  # noqa: B023
        found["theirs_clip"] += took * len(weight) / TIMED_ROWS
        for _, clip in clips:
            grouped = scaled.reshape(*clip.shape[:2], -1)
            scaled = torch.clamp(grouped, -clip, clip).reshape(scaled.shape)
        rounded = solver.pseudo_quantize_tensor(scaled.half())[0].float() / scales[0]
        found["theirs_loss"] += float(output_error(weight[:TIMED_ROWS] - rounded, stats.gram).sum())


def block_lines(found: Mapping[str, Any]) -> Iterable[str]:
    yield "              ours      autoawq   ratio"
    yield (
        f"scale search  {found['ours_scale_seconds']:6.1f} s  {found['theirs_scale_seconds']:6.1f} s  "
        f"{found['scale_ratio']:6.1f}"
    )
    yield f"clip search   {found['ours_clip_seconds']:6.1f} s  {found['theirs_clip_seconds']:6.1f} s"
    yield (
        f"both          {found['ours_seconds']:6.1f} s  {found['theirs_seconds']:6.1f} s  {found['ratio']:6.1f}  "
        "(to be 5 or more)"
    )
    yield f"output error on the rows that both clipped: {found['loss_ratio']:.4f} of theirs (to be 1 or less)"


def measure_widths(pairs: int) -> dict[str, Any]:
    weights = list(block_weights()["qkv"].values())
    stats = statistics(inputs(2560))
    formats = [Format(bits, 128) for bits in BITS]
    together, alone = [], []
    for _ in range(pairs):
        together.append(seconds(lambda: OURS.quantize_many(weights, stats, formats)))
        alone.append(seconds(lambda: [OURS.quantize(weights, stats, form) for form in formats]))
    ratios = [one / other for one, other in zip(alone, together, strict=True)]
    return {"together_seconds": median(together), "alone_seconds": median(alone), "ratio": median(ratios)}


def widths_lines(found: Mapping[str, Any]) -> Iterable[str]:
    yield f"at once {found['together_seconds']:.1f} s   one by one {found['alone_seconds']:.1f} s   {found['ratio']:.2f} times"


def measure_memory(_pairs: int) -> dict[str, Any]:
    """Measure the peak memory that solving adds to a process with the weights and the Gram matrix, for each shared input."""
    rows = []
    for shared in BLOCK:
        program = f"from benchmarks.solvers_awq import peak; peak({shared!r})"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
            # Return freed memory to the system at once, so that memory used again is counted again.
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        )  # fmt: skip
        rows.append(json.loads(done.stdout))
    return {"rows": rows}


def peak(shared: str) -> None:
    """Print, as JSON, the MB that solving the linears of a shared input adds to the process, and the largest weight's MB."""
    weights = list(block_weights()[shared].values())
    columns = weights[0].shape[1]
    gram = torch.rand(columns, columns)
    gram.diagonal().add_(columns)
    stats = LayerStats(gram, gram.diagonal().sqrt(), 2048)
    # Exclude torch's one-time setup.
    OURS.quantize([weights[0][:128, :256]], LayerStats(gram[:256, :256], gram[0, :256], 9), FORMAT)
    forget_peak()
    before = resident("VmRSS")
    OURS.quantize(weights, stats, FORMAT)
    added = (resident("VmHWM") - before) / 2**20
    largest = max(weight.numel() for weight in weights) * 4
    found = {"input": shared, "added_mb": added, "largest_weight_mb": largest / 2**20}
    sys.stdout.write(json.dumps(found))


def memory_lines(found: Mapping[str, Any]) -> Iterable[str]:
    for row in found["rows"]:
        yield (
            f"{row['input']:4}  {row['added_mb']:6.0f} MB beside weights and Gram matrix; "
            f"the largest weight is {row['largest_weight_mb']:.0f} MB"
        )


SECTIONS: dict[str, Section] = {
    "awq_parity": Section(measure_parity, parity_lines),
    "awq_block": Section(measure_block, block_lines),
    "awq_widths": Section(measure_widths, widths_lines),
    "awq_memory": Section(measure_memory, memory_lines),
}
