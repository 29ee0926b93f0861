"""llm-compressor's side: its Hessians, ``quantize_weight`` and the search of its ``AWQModifier``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, initialize_module_for_quantization
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.modifiers.gptq.helpers import accumulate_hessian, make_empty_hessian
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.awq.mappings import ResolvedMapping
from llmcompressor.observers import Observer
from llmcompressor.pipelines.cache import IntermediatesCache
from torch import Tensor, nn
from work import Restored, serve

Weights = Mapping[str, Mapping[str, Tensor]]


def gptq_block(weights: Weights, inputs: Mapping[str, Tensor], bits: list[int]) -> Restored:
    found: Restored = {}
    for name, members in weights.items():
        # Share a Hessian among an input's linears: by itself it sums a Hessian for each linear.
        layer = linear(next(iter(members.values())))
        hessian, count = make_empty_hessian(layer), torch.zeros(())
        for batch in inputs[name]:
            hessian, count = accumulate_hessian(batch[None], layer, hessian, count)
        for member, weight in members.items():
            found[member] = [solved(weight, hessian / count, width) for width in bits]
    return found


def gptq_layer(weights: Weights, grams: Mapping[str, Tensor], bits: list[int]) -> Restored:
    return {
        member: [solved(weight, 2 * grams[name], width) for width in bits]
        for name, members in weights.items()
        for member, weight in members.items()
    }


def solved(weight: Tensor, hessian: Tensor, width: int) -> Tensor:
    """Run ``quantize_weight`` in its static activation order, on its own asymmetric grid for each row."""
    arguments = QuantizationArgs(
        num_bits=width, strategy="channel", symmetric=False, actorder="static", observer="memoryless_minmax"
    )
    observer = Observer.load_from_registry(
        "memoryless_minmax", base_name="weight", args=arguments, module=linear(weight)
    )
    observer(weight)
    grid = observer.get_qparams()
    # It works in the memory it is given.
    quantized, _, fallback = quantize_weight(
        weight.clone()[None], hessian[None], grid["scale"][None], grid["zero_point"][None], None, arguments
    )
    assert not bool(fallback.any()), "llm-compressor rounded to nearest"
    return quantized[0]


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


class SameCandidates(AWQModifier):
    """Try no scaling and 20 exponents from 0 to 0.95, as ours does, and not 1."""

    def _get_grid_search_params(self) -> list[tuple[float, bool]]:
        return super()._get_grid_search_params()[:-1]


class Siblings(nn.Module):
    """The linears that share an input: less to run than the attention or MLP whose outputs the modifier compares."""

    def __init__(self, layers: dict[str, nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers.values()], dim=-1)


def awq_block(weights: Weights, inputs: Mapping[str, Tensor], bits: list[int]) -> Restored:
    return {
        member: restored
        for name, members in weights.items()
        for member, restored in awq_siblings(members, inputs[name], bits).items()
    }


def awq_siblings(members: Mapping[str, Tensor], x: Tensor, bits: list[int]) -> Restored:
    found: Restored = {member: [] for member in members}
    for width in bits:
        arguments = QuantizationArgs(
            num_bits=width, strategy="group", group_size=128, symmetric=False, observer="memoryless_minmax"
        )
        layers = {member: linear(weight.clone()) for member, weight in members.items()}
        for layer in layers.values():
            initialize_module_for_quantization(layer, QuantizationScheme(targets=["Linear"], weights=arguments))
            # The modifier runs the rounded weight itself.
            layer.quantization_enabled = False
        parent = Siblings(layers)
        mapping = ResolvedMapping(
            "before",
            nn.LayerNorm(x.shape[-1]),
            list(layers.values()),
            list(layers),
            parent=parent,
            parent_name="parent",
        )
        modifier = SameCandidates(duo_scaling=True, n_grid=22)
        cache: Any = IntermediatesCache(None, None)
        for batch in x:
            cache.append({"x": batch[None]})
        modifier._parent_args_cache[parent] = cache
        modifier._smooth_activation_stats["before"] = [x.abs().sum(dim=(0, 1)), torch.tensor(x.shape[0] * x.shape[1])]
        outputs = modifier._run_samples(parent)
        originals = {layer: layer.weight.clone() for layer in layers.values()}
        scales = modifier._compute_best_scale(mapping, outputs, originals).float()
        for member, weight in members.items():
            found[member].append(rounded(weight * scales, arguments) / scales)
    return found


def rounded(weight: Tensor, arguments: QuantizationArgs) -> Tensor:
    """Round to the library's own grid, as ``QuantizationModifier`` does after the search."""
    from compressed_tensors.quantization import fake_quantize

    observer = Observer.load_from_registry(
        "memoryless_minmax", base_name="weight", args=arguments, module=linear(weight)
    )
    observer(weight)
    grid = observer.get_qparams()
    return fake_quantize(weight, grid["scale"], grid["zero_point"], arguments)


if __name__ == "__main__":
    serve({"gptq_block": gptq_block, "gptq_layer": gptq_layer, "awq_block": awq_block}, sys.argv[1])
