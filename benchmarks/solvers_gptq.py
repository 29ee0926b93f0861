"""Compare GPTQ's time and memory with auto-gptq's own solver; sections of ``benchmarks/solvers.py``.

layer     a layer at a single bit-width
block     the six linears of a block of BLIP-2 OPT-2.7b at four bit-widths, from given activations
memory    peak memory besides weights and activations, including Gram matrices (Linux only)
growth    seconds as columns, rows, tokens and bit-widths grow, including Gram matrices

``block`` times everything from activations to results. Ours sums a Gram matrix for each distinct input. The library
cannot solve a linear twice: ``fasterquant`` consumes the Hessian, and ``quantize(examples)`` sums the Hessian of every
linear for a single bit-width. Two ratios are reported: with each linear's Hessian summed once for all bit-widths, the
minimum for a user of the library's classes, and once a bit-width, as the library itself does.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.solvers_parity import BITS, linear
from benchmarks.timing import Section, correlated_inputs, forget_peak, in_pairs, progress, random_weight, resident
from mmq_sweeps.methods.auto_gptq import AutoGPTQ, load, run
from mmq_sweeps.methods.base import LayerStats, quantize_many
from mmq_sweeps.methods.formats import Format, QuantizedWeight
from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.quantization.calibration import Collector
from mmq_sweeps.quantization.calibration.sums import PANEL

# A block of BLIP-2 OPT-2.7b (facebook/opt-2.7b): linears by the input they share, and their shapes [O, I].
BLOCK = {
    "qkv": {"q_proj": (2560, 2560), "k_proj": (2560, 2560), "v_proj": (2560, 2560)},
    "out": {"out_proj": (2560, 2560)},
    "fc1": {"fc1": (10240, 2560)},
    "fc2": {"fc2": (2560, 10240)},
}
BATCHES, TOKENS = 8, 512


def measure_layer(pairs: int) -> dict[str, Any]:
    """Time a layer at a single bit-width from its Gram matrix, including factorization."""
    rows = []
    for (out, columns), bits in (((2560, 2560), 4), ((2560, 10240), 4)):
        x = torch.cat(correlated_inputs(columns, BATCHES, TOKENS)).flatten(0, 1)
        weight, gram, format = random_weight(out, columns), x.T @ x / len(x), Format(bits)
        del x
        progress(f"layer: {out}x{columns}")
        found = in_pairs(
            lambda: GPTQ().quantize([weight], LayerStats(gram, gram[0], 1), format),  # noqa: B023
            lambda: AutoGPTQ().quantize([weight], LayerStats(gram, gram[0], 1), format),  # noqa: B023
            pairs,
        )
        rows.append({"rows": out, "columns": columns, "bits": bits, **found})
    return {"rows": rows}


def layer_lines(found: Mapping[str, Any]) -> Iterable[str]:
    for row in found["rows"]:
        yield (
            f"{row['rows']}x{row['columns']} at {row['bits']} bits: {row['ours_seconds']:.2f} s, auto-gptq "
            f"{row['theirs_seconds']:.2f} s, {row['ratio']:.1f} times"
        )


class Given(nn.Linear):
    """A linear that returns its input: the block's activations are given, not computed."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def block_of() -> tuple[nn.ModuleDict, dict[str, list[Tensor]]]:
    """Return a block's linears, and the batches of each distinct input."""
    linears, inputs = {}, {}
    for seed, (name, members) in enumerate(BLOCK.items()):
        for member, shape in members.items():
            rows, columns = shape
            linears[member] = Given(columns, rows, bias=False, device="meta")
            linears[member].weight = nn.Parameter(random_weight(rows, columns, seed), requires_grad=False)
        inputs[name] = correlated_inputs(columns, BATCHES, TOKENS, seed)
    return nn.ModuleDict(linears), inputs


def our_statistics(block: nn.ModuleDict, inputs: Mapping[str, Sequence[Tensor]]) -> list[Any]:
    collector = Collector(list(dict(block.named_children())))
    with collector.listening(block):
        for batch in range(BATCHES):
            collector.begin(None)
            for name, members in BLOCK.items():
                for member in members:
                    hear(block[member], inputs[name][batch])
    return collector.statistics()


def hear(layer: nn.Module, x: Tensor) -> None:
    """Call the pre-hooks of ``layer`` without its product, since the library is given activations as well."""
    for hook in layer._forward_pre_hooks.values():
        hook(layer, (x,))


def our_block(block: nn.ModuleDict, inputs: Mapping[str, Sequence[Tensor]]) -> dict[str, list[QuantizedWeight]]:
    """Solve the block's six linears at every bit-width: Gram matrices, then a call for each distinct input."""
    found: dict[str, list[QuantizedWeight]] = {}
    for shared in our_statistics(block, inputs):
        names = shared.linears
        solutions = quantize_many(GPTQ(), [block[name].weight for name in names], shared.stats, list(map(Format, BITS)))
        for k, name in enumerate(names):
            found[name] = [solution.weights[k] for solution in solutions]
    return found


def their_block(
    block: nn.ModuleDict, inputs: Mapping[str, Sequence[Tensor]]
) -> tuple[dict[str, list[Tensor]], float, float]:
    """Solve the same with the library.

    Returns dequantized weights, seconds of summing Hessians once a linear, and seconds of solving.
    """
    solver_class, _ = load()
    found: dict[str, list[Tensor]] = {}
    summing = solving = 0.0
    for name, members in BLOCK.items():
        for member in members:
            layer = block[member]
            solver = solver_class(layer)

            started = time.perf_counter()
            for batch in inputs[name]:
                solver.add_batch(batch, None)
            summing += time.perf_counter() - started
            started = time.perf_counter()
            weight = layer.weight.detach()
            found[member] = [run(linear(weight), solver.H.clone(), Format(bits))[0] for bits in BITS]
            solving += time.perf_counter() - started
    return found, summing, solving


def measure_block(pairs: int) -> dict[str, Any]:
    block, inputs = block_of()
    found: dict[str, Any] = {"tokens": BATCHES * TOKENS, "bits": BITS}
    pairs_found = []
    for pair in range(pairs):
        if pair % 2:
            theirs, summing, solving = their_block(block, inputs)
        started = time.perf_counter()
        mine = our_block(block, inputs)
        our_seconds = time.perf_counter() - started
        if not pair % 2:
            theirs, summing, solving = their_block(block, inputs)
        pairs_found.append((our_seconds, summing, solving))
        progress(
            f"block, pair {pair + 1} of {pairs}: ours {our_seconds:.1f} s; auto-gptq's Hessians {summing:.1f} s, "
            f"solving {solving:.1f} s"
        )
        if not pair:
            found["error_ratios"] = error_ratios(block, inputs, mine, theirs)
        del mine, theirs
    found["ours_seconds"] = statistics.median(mine for mine, _, _ in pairs_found)
    found["theirs_seconds"] = statistics.median(summing + solving for _, summing, solving in pairs_found)
    found["summing_seconds"] = statistics.median(summing for _, summing, _ in pairs_found)
    found["ratios"] = [(summing + solving) / mine for mine, summing, solving in pairs_found]
    found["ratio"] = statistics.median(found["ratios"])
    per_width = [(len(BITS) * summing + solving) / mine for mine, summing, solving in pairs_found]
    found["ratios_summing_per_width"], found["ratio_summing_per_width"] = per_width, statistics.median(per_width)
    return found


def error_ratios(
    block: nn.ModuleDict,
    inputs: Mapping[str, Sequence[Tensor]],
    mine: Mapping[str, Sequence[QuantizedWeight]],
    theirs: Mapping[str, Sequence[Tensor]],
) -> dict[str, list[float]]:
    """Return our squared output error over the library's for each linear and bit-width, on every fourth token."""
    found = {}
    for name, members in BLOCK.items():
        x = torch.cat(list(inputs[name])).flatten(0, 1)[::4]
        for member in members:
            weight = block[member].weight.detach()
            found[member] = [
                float((x @ (weight - own.dequantize()).T).square().sum() / (x @ (weight - other).T).square().sum())
                for own, other in zip(mine[member], theirs[member], strict=True)
            ]
    return found


def block_lines(found: Mapping[str, Any]) -> Iterable[str]:
    yield (
        f"{found['tokens']} tokens, bits {', '.join(map(str, found['bits']))}: {found['ours_seconds']:.1f} s, auto-gptq "
        f"{found['theirs_seconds']:.1f} s, of which {found['summing_seconds']:.1f} s sum Hessians"
    )
    yield (
        f"auto-gptq's Hessians summed once a linear: {found['ratio']:.1f} times "
        f"(pairs: {', '.join(f'{ratio:.1f}' for ratio in found['ratios'])})"
    )
    yield (
        f"summed once a linear and bit-width, as it does by itself: {found['ratio_summing_per_width']:.1f} times "
        f"(pairs: {', '.join(f'{ratio:.1f}' for ratio in found['ratios_summing_per_width'])})"
    )
    yield "output error, ours over theirs, each on its own grids:"
    for member, ratios in found["error_ratios"].items():
        yield f"  {member:9} " + "  ".join(
            f"{bits} bits {ratio:.4f}" for bits, ratio in zip(found["bits"], ratios, strict=True)
        )


def measure_growth(pairs: int) -> dict[str, Any]:
    """Time both sides, including the Hessian, varying a single quantity from the base."""
    base = {"rows": 2560, "columns": 2560, "tokens": 4096, "widths": 1}
    steps = {
        "rows": (1280, 2560, 5120),
        "columns": (1280, 2560, 5120),
        "tokens": (2048, 4096, 8192),
        "widths": (1, 2, 4),
    }
    rows = []
    for quantity, values in steps.items():
        for value in values:
            at = {**base, quantity: value}
            x = torch.cat(correlated_inputs(at["columns"], 1, at["tokens"])).flatten(0, 1)
            progress(f"growth: {at}")
            weight, formats = random_weight(at["rows"], at["columns"]), list(map(Format, BITS[: at["widths"]]))
            found = in_pairs(
                lambda: quantize_many(GPTQ(), [weight], LayerStats(x.T @ x / len(x), x[0], len(x)), formats),  # noqa: B023
                lambda: [run(linear(weight), 2 * (x.T @ x / len(x)), format) for format in formats],  # noqa: B023
                pairs,
            )
            rows.append({"quantity": quantity, **at, **found})
    return {"rows": rows}


def growth_lines(found: Mapping[str, Any]) -> Iterable[str]:
    yield "             rows  columns  tokens  bit-widths   ours s  auto-gptq s"
    for row in found["rows"]:
        yield (
            f"{row['quantity']:8}  {row['rows']:7}  {row['columns']:7}  {row['tokens']:6}  {row['widths']:10}  "
            f"{row['ours_seconds']:7.2f}  {row['theirs_seconds']:11.2f}"
        )


def memory_of(side: str) -> dict[str, float]:
    """Measure bytes of weights and activations, and the peaks of summing and solving beyond them, in a fresh process.

    Results are freed after the linears of each input, as a sweep stores them. The library is measured at a single
    bit-width, since each takes the same memory.
    """
    block, inputs = block_of()
    # Exclude one-time setup: the compiled loop, and the workspace of torch's matrix products.
    weight = block["fc2"].weight
    torch.mm(weight[:, :PANEL].T.contiguous(), weight)
    GPTQ().quantize([weight[:, :2048]], LayerStats(torch.eye(2048), torch.ones(2048), 1), Format(4))
    held = resident("VmRSS")
    peaks = {"held": held}
    forget_peak()
    if side == "ours":
        statistics_of = our_statistics(block, inputs)
        peaks["summing"] = resident("VmHWM") - held
        forget_peak()
        for shared in statistics_of:
            quantize_many(
                GPTQ(), [block[name].weight for name in shared.linears], shared.stats, list(map(Format, BITS))
            )
        peaks["solving"] = resident("VmHWM") - held
        return peaks
    solver_class, _ = load()
    for name, members in BLOCK.items():
        for member in members:
            solver = solver_class(block[member])
            for batch in inputs[name]:
                solver.add_batch(batch, None)
            hessian = solver.H
            del solver
            run(linear(block[member].weight.detach()), hessian, Format(4))
            del hessian
    return {**peaks, "whole": resident("VmHWM") - held}


def measure_memory(_pairs: int) -> dict[str, Any]:
    shapes = [shape for members in BLOCK.values() for shape in members.values()]
    columns = [next(iter(members.values()))[1] for members in BLOCK.values()]
    found: dict[str, Any] = {
        "weights": 4 * sum(rows * columns for rows, columns in shapes),
        "largest_weight": 4 * max(rows * columns for rows, columns in shapes),
        "grams": 4 * sum(size**2 for size in columns),
        "results": len(BITS) * max(sum(math.prod(shape) for shape in members.values()) for members in BLOCK.values()),
    }
    for side in ("ours", "theirs"):
        progress(f"memory: {side}")
        program = (
            f"import json, sys, torch; sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r}); "
            f"torch.set_grad_enabled(False); from benchmarks.solvers_gptq import memory_of; "
            f"print(json.dumps(memory_of({side!r})))"
        )
        # Return freed memory to the system at once, so that memory used again is counted again.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "4194304", "MALLOC_TRIM_THRESHOLD_": "4194304"}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
        )
        found[side] = json.loads(done.stdout)
    return found


def memory_lines(found: Mapping[str, Any]) -> Iterable[str]:
    def megabytes(value: float) -> str:
        return f"{value / 1e6:.0f} MB"

    limit = found["grams"] + found["largest_weight"]
    ours = found["ours"]
    yield (
        f"one Gram matrix of each distinct input {megabytes(found['grams'])}, the largest weight "
        f"{megabytes(found['largest_weight'])}, together {megabytes(limit)}; weights and activations are held beside"
    )
    yield f"ours, while Gram matrices are summed: {megabytes(ours['summing'])} at most"
    yield f"ours, while linears are solved: {megabytes(ours['solving'])} at most, of which results (a byte a code) " + (
        f"{megabytes(found['results'])} and the rest {megabytes(ours['solving'] - found['results'])}"
    )
    yield f"auto-gptq, a linear and a bit-width at a time: {megabytes(found['theirs']['whole'])} at most"


SECTIONS: dict[str, Section] = {
    "layer": Section(measure_layer, layer_lines),
    "block": Section(measure_block, block_lines),
    "memory": Section(measure_memory, memory_lines),
    "growth": Section(measure_growth, growth_lines),
}
