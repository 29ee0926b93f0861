"""SignRound by AutoRound 0.16.1 (Cheng et al. 2023, arXiv 2309.05516; https://github.com/intel/auto-round, Apache-2.0).

Whether each weight is rounded up or down, and how far each group's range is cut, are learned by signed gradient descent.
The library's own ``WrapperLinear``, quantization functions, optimizer and learning rate are used. Two things differ from
its command line: it learns a block of the model at once, here each linear is learned for its own output; and its steps
see eight samples each, here each sees all calibration tokens, whose Gram matrix gives their squared error exactly.

Importing ``auto_round`` changes transformers for the whole process. ``load`` imports the modules needed under a package
without that ``__init__``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmq_sweeps.methods.base import GroupedMethod, LayerStats, Solution, check_installed
from mmq_sweeps.methods.formats import (
    Format,
    Grid,
    QuantizedWeight,
    storable_scale,
)
from mmq_sweeps.methods.magnitude import divided, exponent_of

PACKAGE = "auto_round"
# Group sizes as the library writes them.
GROUPS: dict[int | str, int] = {"tensor": 0, "channel": -1}


@functools.cache
def load() -> tuple[Any, Any, Any]:
    """Return the library's wrapped linear, its optimizer, and its settings, which choose a learning rate.

    Leaves transformers as it is. A ValueError names the command that installs the library if it is missing.
    """
    check_installed(PACKAGE, "auto-round")
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None
    assert found.submodule_search_locations is not None
    own = None
    if PACKAGE not in sys.modules:
        own = ModuleType(PACKAGE)
        own.__path__ = list(found.submodule_search_locations)
        sys.modules[PACKAGE] = own
    try:
        wrapper, optimizer, config = (
            importlib.import_module(f"{PACKAGE}.{name}")
            for name in (
                "wrapper",
                "algorithms.quantization.sign_round.sign_sgd",
                "algorithms.quantization.sign_round.config",
            )
        )
    finally:
        # Whoever imports the library itself gets all of it.
        if own is not None and sys.modules.get(PACKAGE) is own:
            del sys.modules[PACKAGE]
    return wrapper.WrapperLinear, optimizer.SignSGD, config.SignRoundConfig


def wrapped(weight: Tensor, format: Format) -> Any:
    """Return the library's wrapper around a linear of ``weight`` ``[O, I]``."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    settings = {
        "bits": format.bits,
        "group_size": GROUPS.get(format.group_size, format.group_size),
        "sym": format.symmetric,
        "data_type": "int",
        "act_bits": 16,
        "scale_dtype": torch.float32,
    }
    for name, value in settings.items():
        setattr(layer, name, value)
    wrapper, _, _ = load()
    return wrapper(layer, enable_torch_compile=False, device=weight.device)


def learn(weight: Tensor, gram: Tensor, format: Format, iterations: int, rate: float | None) -> dict[str, Tensor]:
    """Return the wrapper's parameters with the least output error over all steps: ``value``, ``min_scale``, ``max_scale``.

    ``weight`` ``[O, I]`` and ``gram`` ``[I, I]`` are float32; ``rate`` None is the library's choice for the bit-width.
    """
    (_, optimizer_class, settings), wrapper = load(), wrapped(weight, format)
    rate = rate or settings(iters=iterations).compute_lr(format.bits)
    optimizer = optimizer_class(list(wrapper.params.values()), lr=rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=iterations)
    least, best = float("inf"), {}
    for _ in range(iterations):
        restored, _, _ = wrapper._qdq_weight(wrapper.value, wrapper.min_scale, wrapper.max_scale)
        error = restored - weight
        loss = ((error @ gram) * error).sum()
        if (size := float(loss.detach())) < least:
            least = size
            best = {name: parameter.detach().clone() for name, parameter in wrapper.params.items()}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return best


def stored(weight: Tensor, format: Format, learned: dict[str, Tensor]) -> QuantizedWeight:
    """Return ``weight`` ``[O, I]`` rounded as ``learned``, with scales as they are stored."""
    wrapper = wrapped(weight, format)
    with torch.no_grad():
        _, scale, zero = wrapper._qdq_weight(*(learned[name] for name in ("value", "min_scale", "max_scale")))
    shape = format.groups((weight.shape[0], weight.shape[1]))
    scale = scale.reshape(shape)
    # A symmetric grid has one step more on the side of the larger weights, by the sign of its scale.
    scale = torch.copysign(storable_scale(scale.abs(), format), scale)
    zero = torch.full_like(scale, (format.max_code + 1) // 2) if format.symmetric else zero.reshape(shape)
    steps = weight.reshape(*shape, -1) / scale[:, :, None] + learned["value"].reshape(*shape, -1)
    codes = steps.round_().add_(zero[:, :, None]).clamp_(0, format.max_code)
    return QuantizedWeight(codes.to(torch.uint8).reshape(weight.shape), Grid(scale, zero, format))


@dataclass(frozen=True)
class AutoRound(GroupedMethod):
    """AutoRound's own solver for a linear. ``iterations`` and ``learning_rate`` are the library's ``iters`` and ``lr``."""

    iterations: int = 200
    learning_rate: float | None = None

    known_as: ClassVar[str] = "auto_round"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations!r}: choose at least one step")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate!r}: choose a rate above 0, or null for the library's")
        check_installed(PACKAGE, "auto-round")

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:
        if stats is None:
            raise ValueError("AutoRound needs the statistics of the layer's inputs")
        return Solution([self._solve(weight, stats, format) for weight in weights], {})

    def _solve(self, weight: Tensor, stats: LayerStats, format: Format) -> QuantizedWeight:
        # The library takes scales below 1e-8 for zeros. Halves have no smaller ones, and lose digits by such a division.
        exponent = 0 if format.dtype == "float16" else exponent_of(weight)
        unit = divided(weight, exponent)
        with torch.enable_grad():
            learned = learn(unit, stats.gram.float(), format, self.iterations, self.learning_rate)
        return stored(unit, format, learned).times_power_of_two(exponent)
