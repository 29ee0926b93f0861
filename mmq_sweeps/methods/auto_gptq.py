"""auto-gptq 0.7.1's own solver (https://github.com/AutoGPTQ/AutoGPTQ, MIT licence), to compare with and to sweep.

The library is discontinued and cannot be imported with current transformers. ``load`` works around this without
affecting other imports of ``auto_gptq`` in the process:

- It loads only ``quantization/gptq.py`` and ``quantization/quantizer.py``, as a package with a private name, so the
  package's ``__init__``, which fails on ``no_init_weights`` of transformers 5, does not run.
- ``torch.cuda.synchronize()``, which raises if torch was built without CUDA, does nothing in ``gptq.py``.
- It restores the two ``allow_tf32`` switches of torch that ``gptq.py`` sets on import.

The Hessian passed in is twice the Gram matrix: the sum that the library's ``add_batch`` builds, up to a factor that
does not change its result. Its scales are rounded to the digits of half precision, in which the library stores them
(``QuantLinear.pack``).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmq_sweeps.methods.base import LayerStats, Solution, check_installed
from mmq_sweeps.methods.formats import Format, Grid, QuantizedWeight
from mmq_sweeps.methods.gptq import ColumnMethod
from mmq_sweeps.methods.magnitude import divided, exponent_of

PACKAGE = "_mmq_sweeps_auto_gptq"


class _TorchWithoutSynchronize(ModuleType):
    """A stand-in for ``torch`` in ``gptq.py``: ``cuda.synchronize`` and ``cuda.empty_cache`` do nothing."""

    cuda = SimpleNamespace(synchronize=lambda: None, empty_cache=lambda: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@functools.cache
def load() -> tuple[Any, Any]:
    """Return the library's classes ``GPTQ`` and ``Quantizer``."""
    check_installed("auto_gptq", "auto-gptq")
    found = importlib.util.find_spec("auto_gptq")
    assert found is not None
    assert found.submodule_search_locations is not None
    package = ModuleType(PACKAGE)
    package.__path__ = [str(Path(location, "quantization")) for location in found.submodule_search_locations]
    sys.modules[PACKAGE] = package
    switches = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        solver = importlib.import_module(f"{PACKAGE}.gptq")
        quantizer = importlib.import_module(f"{PACKAGE}.quantizer")
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = switches
    solver.torch = _TorchWithoutSynchronize("torch")  # type: ignore[attr-defined]
    return solver.GPTQ, quantizer.Quantizer


def run(
    layer: nn.Linear,
    hessian: Tensor,
    format: Format,
    damping: float = 0.01,
    act_order: bool = True,
    static_groups: bool = True,
    block_size: int = 128,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve ``layer``; return its dequantized weight ``[O, I]`` and the unrounded scales and zeros ``[O, G]``.

    Overwrites the layer's weight and ``hessian`` ``[I, I]``. Raises ValueError if the factorization fails: the library
    tries a single damping only.
    """
    solver_class, quantizer_class = load()
    solver = solver_class(layer)
    solver.quantizer = quantizer_class()
    solver.quantizer.configure(format.bits, perchannel=format.group_size != "tensor", sym=format.symmetric, mse=False)
    solver.H, solver.nsamples = hessian, 1
    grouped = isinstance(format.group_size, int)
    try:
        scale, zero, _ = solver.fasterquant(
            blocksize=block_size,
            percdamp=damping,
            group_size=format.group_size if grouped else -1,
            actorder=act_order,
            static_groups=static_groups and grouped,
        )
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ValueError(f"auto-gptq's factorization failed with damping {damping:g}: {error}") from error
    return layer.weight.detach(), scale, zero


@dataclass(frozen=True)
class AutoGPTQ(ColumnMethod):
    """auto-gptq's solver with its own grids. Fields are those of ``GPTQ``; ``block_size`` is the library's.

    With ``static_groups=False`` and groups smaller than a block, the library fits a group's grid to columns not yet
    corrected by the current block, so ``block_size`` changes the result.
    """

    block_size: int = 128

    known_as: ClassVar[str] = "auto_gptq"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_installed("auto_gptq", "auto-gptq")

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:
        if stats is None:
            raise ValueError("auto-gptq needs the statistics of the layer's inputs")
        for name, values in (("the weight", weights), ("the Gram matrix of the calibration inputs", [stats.gram])):
            if not all(torch.isfinite(value).all() for value in values):
                raise ValueError(f"{name} has values that are not finite")
        dead = int((stats.gram.diagonal() == 0).sum())
        return Solution(
            [self._solve(weight, stats, format) for weight in weights], {"dead_inputs": dead} if dead else {}
        )

    def _solve(self, weight: Tensor, stats: LayerStats, format: Format) -> QuantizedWeight:
        rows, columns = weight.shape
        group_rows, _ = format.groups((rows, columns))
        layer = nn.Linear(columns, rows, bias=False, device="meta")
        exponent = exponent_of(weight)
        layer.weight = nn.Parameter(divided(weight.detach(), exponent), requires_grad=False)
        restored, scale, zero = run(
            layer, 2 * stats.gram, format, self.damping, self.act_order, self.static_groups, self.block_size
        )
        grid = Grid(scale[:group_rows], zero[:group_rows], format)
        own = grid.times_power_of_two(exponent)
        return QuantizedWeight(codes_of(restored, grid), own.with_scale(own.scale))


def codes_of(restored: Tensor, grid: Grid) -> Tensor:
    """Return the codes, uint8 ``[O, I]``, of a dequantized weight."""
    scale, zero = grid.expand(restored.shape[1])
    return torch.round(restored / scale + zero).to(torch.uint8)
