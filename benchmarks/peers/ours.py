"""Our side: the statistics and solvers that a sweep runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from benchmarks.peers.work import Restored, serve
from mmq_sweeps.methods.awq import AWQ
from mmq_sweeps.methods.base import LayerStats, Method, quantize_many
from mmq_sweeps.methods.formats import Format
from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.quantization.calibration import Collector

Weights = Mapping[str, Mapping[str, Tensor]]


def gptq_block(weights: Weights, inputs: Mapping[str, Tensor], bits: list[int]) -> Restored:
    return _block(GPTQ(), weights, inputs, [Format(width) for width in bits])


def gptq_layer(weights: Weights, grams: Mapping[str, Tensor], bits: list[int]) -> Restored:
    formats = [Format(width) for width in bits]
    found: Restored = {}
    for name, members in weights.items():
        gram = grams[name]
        stats = LayerStats(gram, gram.diagonal().sqrt(), 1)
        found |= _solved(GPTQ(), dict(members), stats, formats)
    return found


def awq_block(weights: Weights, inputs: Mapping[str, Tensor], bits: list[int]) -> Restored:
    return _block(
        AWQ(group_size=128, clip_steps=0, fuse=False), weights, inputs, [Format(width, 128) for width in bits]
    )


def _block(method: Method, weights: Weights, inputs: Mapping[str, Tensor], formats: list[Format]) -> Restored:
    block = nn.ModuleDict()
    for members in weights.values():
        for member, weight in members.items():
            block[member] = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    collector = Collector(list(block))
    with collector.listening(block):
        for batch in range(len(next(iter(inputs.values())))):
            collector.begin(None)
            for name, members in weights.items():
                x = inputs[name][batch][None]
                for member in members:
                    # The activations are given, so no product is needed.
                    for hook in block[member]._forward_pre_hooks.values():
                        hook(block[member], (x,))
    every = {member: weight for members in weights.values() for member, weight in members.items()}
    found: Restored = {}
    for shared in collector.statistics():
        found |= _solved(method, {name: every[name] for name in shared.linears}, shared.stats, formats)
    return found


def _solved(method: Method, weights: Mapping[str, Tensor], stats: LayerStats, formats: list[Format]) -> Restored:
    solutions = quantize_many(method, list(weights.values()), stats, formats)
    return {
        name: [solution.weights[index].dequantize() for solution in solutions] for index, name in enumerate(weights)
    }


if __name__ == "__main__":
    # Load the compiled loop.
    GPTQ().quantize([torch.randn(64, 64)], LayerStats(torch.eye(64), torch.ones(64), 1), Format(4))
    serve({"gptq_block": gptq_block, "gptq_layer": gptq_layer, "awq_block": awq_block}, sys.argv[1])
