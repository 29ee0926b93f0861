"""autoawq's own scale search, clip search and rounding (arXiv 2306.00978; the library is autoawq 0.2.9, discontinued).

The library's functions run on a module of the linears that share an input, on all calibration tokens. Around them:

- On a CPU the library keeps its copy of the weights by ``v.cpu()``, which copies nothing, so that every candidate scale
  is tried on weights that the one before has already rounded. The module here hands out copies.
- Its clip search takes rows in batches of 64 or 256 that must fill up: rows of zeros are added and taken off again.
- It cannot be built without a language model and a tokenizer, so its constructor is left out.
- It has absolute constants (scales are at least 1e-5) and rounds in half precision: weights and inputs are handed over in
  units of their own size.
- Importing it changes the warning filters and warns of its end: both are undone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmq_sweeps.methods.affine import Format, Grid, QuantizedWeight, check_group_size
from mmq_sweeps.methods.base import LayerStats, Solution, check_installed
from mmq_sweeps.methods.magnitude import divided, exponent_of, loss_weights, multiplied

# The library's row batches for its clip search: 256 where they divide the rows, else 64, which must.
ROW_BATCH = 64


@dataclass(frozen=True)
class AutoAWQ:
    """``duo_scaling`` and ``apply_clip`` are the library's own switches, on by default as there."""

    group_size: int | str = "channel"
    symmetric: bool = False
    duo_scaling: bool = True
    apply_clip: bool = True

    known_as: ClassVar[str] = "autoawq"
    needs_statistics: ClassVar[bool] = True
    needs_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_group_size(self.group_size)
        if self.group_size == "tensor":
            raise ValueError("group_size='tensor': autoawq has groups of input columns; choose channel or a number")
        check_installed("awq", "autoawq")

    def format(self, bits: int) -> Format:
        return Format(bits, self.group_size, self.symmetric)

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:
        """Quantize ``weights`` ``[O_k, I]`` on ``stats.inputs`` ``[count, I]``; one input scale for all of them."""
        if stats is None or stats.inputs is None:
            raise ValueError("autoawq needs the calibration inputs themselves")
        inputs = divided(stats.inputs, exponent_of(stats.inputs))
        exponents = [exponent_of(weight) for weight in weights]
        weights = [divided(weight, exponent) for weight, exponent in zip(weights, exponents, strict=True)]
        solver = library_solver(format, inputs.shape[1], self.duo_scaling)
        module = SharedInput(weights)
        names = [f"linears.{index}" for index in range(len(weights))]
        # The tuple is the names of the module before, of the linears, and the scale.
        scale = solver._search_best_scale(module, module.before, list(module.linears), inputs, module)[2]
        input_scale = scale.to(inputs.device).clamp(2.0**-14, 65504.0).to(torch.float16)
        scaled = _with_whole_batches([weight.float() * input_scale.float() for weight in weights])
        if self.apply_clip:
            scaled_inputs = dict.fromkeys(names, inputs / input_scale.float())
            clips = solver._search_best_clip(module, dict(zip(names, map(_linear, scaled), strict=True)), scaled_inputs)
            scaled = [_clamp(weight, clip) for weight, (_, clip) in zip(scaled, clips, strict=True)]
        rounded = [
            _rounded(solver, weight[: len(original)], format, input_scale)
            for weight, original in zip(scaled, weights, strict=True)
        ]
        return multiplied(Solution(rounded, {}), exponents)


class SharedInput(nn.Module):
    """Linears ``[O_k, I]`` with copied weights on one input; the output is theirs side by side, each over its weight's size."""

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
    """A hook for ``state_dict``: what the library keeps of the weights then survives what it does to them."""
    for name, value in state.items():
        state[name] = value.clone()


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def library_solver(format: Format, columns: int, duo_scaling: bool) -> Any:
    """The library's ``AwqQuantizer`` for ``format`` on inputs of ``columns`` features, without a model of its own."""
    with warnings.catch_warnings(record=True):
        from awq.quantize.quantizer import AwqQuantizer

    solver = AwqQuantizer.__new__(AwqQuantizer)
    solver.w_bit, solver.zero_point, solver.duo_scaling = format.bits, not format.symmetric, duo_scaling
    # The library's own sign for a row, -1, fails in its scale search.
    solver.group_size = columns if format.group_size == "channel" else format.group_size
    solver.n_parallel_calib_samples, solver.max_chunk_memory = None, 1024**3
    return solver


def _with_whole_batches(weights: Sequence[Tensor]) -> list[Tensor]:
    return [nn.functional.pad(weight, (0, 0, 0, -len(weight) % ROW_BATCH)) for weight in weights]


def _clamp(weight: Tensor, clip: Tensor) -> Tensor:
    """``weight`` ``[O, I]`` within its groups' ``clip`` ``[O, G, 1]``, as the library's ``apply_clip``."""
    clip = clip.to(weight.device)
    return torch.clamp(weight.reshape(*clip.shape[:2], -1), -clip, clip).reshape(weight.shape)


def _rounded(solver: Any, weight: Tensor, format: Format, input_scale: Tensor) -> QuantizedWeight:
    """Codes and grid of the scaled ``weight``, which the library rounds in half precision."""
    values, scale, zero = solver.pseudo_quantize_tensor(weight.half())
    scale = scale.float()
    zero = torch.full_like(scale, (format.max_code + 1) // 2) if zero is None else zero.float()
    steps = torch.round(values.float().reshape(*scale.shape, -1) / scale[:, :, None])
    codes = (steps + zero[:, :, None]).to(torch.uint8).reshape(weight.shape)
    # A copy: tensors that are stored must not share memory.
    return QuantizedWeight(codes, Grid(scale, zero, format), input_scale.clone())
