"""autoawq's own scale search, clip search and rounding (arXiv 2306.00978; autoawq 0.2.9, discontinued).

The library's functions run on a module of the linears that share an input, over all calibration tokens. Workarounds:

- On a CPU the library backs up weights with ``v.cpu()``, which copies nothing, so each candidate scale would be tried
  on weights already rounded by the previous candidate. The module here returns copies.
- Its clip search needs whole batches of 64 or 256 rows: rows of zeros are appended and removed again.
- Its constructor requires a language model and a tokenizer, so it is bypassed.
- It has absolute constants (scales are at least 1e-5) and rounds in half precision, so weights and inputs are passed in
  units of their own size.
- Importing it changes the warning filters and emits a deprecation warning: both are undone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmq_sweeps.methods.base import GroupedMethod, LayerStats, Solution, check_installed
from mmq_sweeps.methods.formats import Format, Grid, QuantizedWeight
from mmq_sweeps.methods.magnitude import divided, exponent_of, loss_weights

# The library's clip search takes rows in batches of 256 if that divides them, otherwise of 64, which must.
ROW_BATCH = 64


@dataclass(frozen=True)
class AutoAWQ(GroupedMethod):
    """autoawq as a method; ``duo_scaling`` and ``apply_clip`` are the library's own switches, on by default as there."""

    duo_scaling: bool = True
    apply_clip: bool = True

    known_as: ClassVar[str] = "autoawq"
    input_scaled: ClassVar[bool] = True
    needs_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size == "tensor":
            raise ValueError("group_size='tensor': autoawq has groups of input columns; choose channel or a number")
        check_installed("awq", "autoawq")

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:
        """Quantize ``weights`` ``[O_k, I]`` on ``stats.inputs`` ``[count, I]``, with an input scale shared by all of them."""
        if stats is None or stats.inputs is None:
            raise ValueError("autoawq needs the calibration inputs themselves")
        inputs = divided(stats.inputs, exponent_of(stats.inputs))
        exponents = [exponent_of(weight) for weight in weights]
        weights = [divided(weight, exponent) for weight, exponent in zip(weights, exponents, strict=True)]
        solver = library_solver(format, inputs.shape[1], self.duo_scaling)
        module = SharedInput(weights)
        names = [f"linears.{index}" for index in range(len(weights))]
        # Returns the names of the preceding module and of the linears, then the scale.
        scale = solver._search_best_scale(module, module.before, list(module.linears), inputs, module)[2]
        input_scale = scale.to(inputs.device).clamp(2.0**-14, 65504.0).to(torch.float16)
        scaled = [_whole_batches(weight.float() * input_scale.float()) for weight in weights]
        if self.apply_clip:
            scaled_inputs = dict.fromkeys(names, inputs / input_scale.float())
            clips = solver._search_best_clip(module, dict(zip(names, map(_linear, scaled), strict=True)), scaled_inputs)
            scaled = [_clamp(weight, clip) for weight, (_, clip) in zip(scaled, clips, strict=True)]
        rounded = [
            _rounded(solver, weight[: len(original)], format, input_scale)
            for weight, original in zip(scaled, weights, strict=True)
        ]
        return Solution([_stored(weight, e) for weight, e in zip(rounded, exponents, strict=True)], {})


class SharedInput(nn.Module):
    """Copies of linears ``[O_k, I]`` on a shared input; outputs are concatenated, each over its weight's root mean square."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.before = nn.Identity()
        self.linears = nn.ModuleList([_linear(weight.float().clone()) for weight in weights])
        self.factors = [factor**0.5 for factor in loss_weights(weights)]
        self.register_state_dict_post_hook(keep_copies)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [linear(x) * factor for linear, factor in zip(self.linears, self.factors, strict=True)]
        return torch.cat(outputs, dim=-1)


def keep_copies(_module: nn.Module, state: dict[str, Any], _prefix: str, _metadata: dict[str, Any]) -> None:
    """Clone the tensors of a ``state_dict`` (post hook), so the library's backup survives its changes to the weights."""
    for name, value in state.items():
        state[name] = value.clone()


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def library_solver(format: Format, columns: int, duo_scaling: bool) -> Any:
    """Return the library's ``AwqQuantizer`` for inputs of ``columns`` features, built without its constructor."""
    with warnings.catch_warnings(record=True):
        from awq.quantize.quantizer import AwqQuantizer

    solver = AwqQuantizer.__new__(AwqQuantizer)
    solver.w_bit, solver.zero_point, solver.duo_scaling = format.bits, not format.symmetric, duo_scaling
    # The library's value for whole rows, -1, fails in its scale search.
    solver.group_size = columns if format.group_size == "channel" else format.group_size
    solver.n_parallel_calib_samples, solver.max_chunk_memory = None, 1024**3
    return solver


def _whole_batches(weight: Tensor) -> Tensor:
    return nn.functional.pad(weight, (0, 0, 0, -len(weight) % ROW_BATCH))


def _clamp(weight: Tensor, clip: Tensor) -> Tensor:
    """Clip ``weight`` ``[O, I]`` to its groups' bounds ``clip`` ``[O, G, 1]``, as the library's ``apply_clip`` does."""
    clip = clip.to(weight.device)
    return torch.clamp(weight.reshape(*clip.shape[:2], -1), -clip, clip).reshape(weight.shape)


def _stored(quantized: QuantizedWeight, exponent: int) -> QuantizedWeight:
    """Return ``quantized`` for the weight itself instead of that over ``2**exponent``, its scales as they are stored."""
    grid = quantized.grid.times_power_of_two(exponent)
    return replace(quantized, grid=grid.with_scale(grid.scale))


def _rounded(solver: Any, weight: Tensor, format: Format, input_scale: Tensor) -> QuantizedWeight:
    """Round the scaled ``weight`` with the library, in half precision, and return its codes and grid."""
    values, scale, zero = solver.pseudo_quantize_tensor(weight.half())
    scale = scale.float()
    zero = torch.full_like(scale, (format.max_code + 1) // 2) if zero is None else zero.float()
    steps = torch.round(values.float().reshape(*scale.shape, -1) / scale[:, :, None])
    codes = (steps + zero[:, :, None]).to(torch.uint8).reshape(weight.shape)
    # Clone, because stored tensors must not share memory.
    return QuantizedWeight(codes, Grid(scale, zero, format), input_scale.clone())
