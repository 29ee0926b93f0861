"""Scaling a weight by a power of two changes neither its codes nor its relative error."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from torch import Tensor

from mmq_sweeps.methods.auto_gptq import AutoGPTQ
from mmq_sweeps.methods.auto_round import AutoRound
from mmq_sweeps.methods.autoawq import AutoAWQ
from mmq_sweeps.methods.awq import AWQ
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.coordinate_descent import CoordinateDescent
from mmq_sweeps.methods.formats import Format, QuantizedWeight, round_nearest
from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.methods.hqq import HQQ
from mmq_sweeps.methods.kmeans import KMeans
from mmq_sweeps.methods.magnitude import solve_relative
from mmq_sweeps.methods.normal_float import NormalFloat
from mmq_sweeps.methods.rtn import RoundToNearest
from mmq_sweeps.methods.uniform import Uniform

Composed = Callable[..., DictConfig]
METHODS = {
    "uniform": Uniform,
    "rtn": RoundToNearest,
    "rtn symmetric": lambda: RoundToNearest(16, symmetric=True),
    "gptq": GPTQ,
    "gptq groups on the way": lambda: GPTQ(16, act_order=False, static_groups=False),
    "awq": AWQ,
    "awq symmetric": lambda: AWQ(16, symmetric=True),
    "hqq": HQQ,
    "coordinate_descent": CoordinateDescent,
    "auto_gptq": AutoGPTQ,
    "autoawq": AutoAWQ,
    "auto_round": lambda: AutoRound(iterations=5),
    "kmeans": KMeans,
    "kmeans corrected": lambda: KMeans(corrected=True),
    "normal_float": lambda: NormalFloat(16),
}
LIBRARIES = {"auto_gptq": "auto_gptq", "autoawq": "awq", "auto_round": "auto_round"}


def method(name: str) -> object:
    if name in LIBRARIES and find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"pip install -e '.[{name}]'")
    return METHODS[name]()


def layer(seed: int = 0, std: float = 0.03) -> tuple[list[Tensor], LayerStats]:
    """Return two weights ``[64, 32]`` that share an input of unlike columns."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(100, 32, generator=generator) * torch.logspace(-1, 1, 32)
    weights = [std * torch.randn(64, 32, generator=generator) for _ in range(2)]
    return weights, LayerStats(x.T @ x / len(x), x.abs().mean(dim=0), len(x), x)


def relative_error(weight: Tensor, quantized: QuantizedWeight) -> float:
    return float((weight - quantized.dequantize()).norm() / weight.norm())


@pytest.mark.parametrize(("std", "expected"), [(3e-4, 0.0065), (1e-3, 0.0065), (0.03, 0.0065), (1e-7, 0.0065)])
def test_small_weights_keep_the_relative_error_of_large_ones(std: float, expected: float) -> None:
    weight = std * torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    restored = round_nearest(weight, Format(8))
    assert relative_error(weight, restored) == pytest.approx(expected, rel=0.05)
    stored = QuantizedWeight.unpack(restored.pack(), restored.shape, restored.format)
    assert torch.equal(stored.dequantize(), restored.dequantize())


@settings(deadline=None, max_examples=30)
@given(
    st.integers(-30, 10),
    st.integers(2, 8),
    st.sampled_from(["tensor", "channel", 8]),
    st.sampled_from(["integer", "symmetric", "real"]),
    st.integers(0, 20),
)
def test_a_power_of_two_changes_no_code_and_no_relative_error(
    exponent: int, bits: int, size: int | str, zero: str, seed: int
) -> None:
    form = Format(bits, size, symmetric=zero == "symmetric", real_zero=zero == "real")
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-4, 0, 6)[:, None]
    one, other = round_nearest(weight, form), round_nearest(weight * 2.0**exponent, form)
    assert torch.equal(one.codes, other.codes)
    stored = QuantizedWeight.unpack(other.pack(), other.shape, form)
    assert torch.equal(one.dequantize() * 2.0**exponent, stored.dequantize())


@pytest.mark.parametrize("name", METHODS)
def test_no_method_sees_the_magnitude_of_a_weight_or_of_its_inputs(name: str) -> None:
    solver = method(name)
    weights, stats = layer()
    form = solver.format(3)
    before = solver.quantize(weights, stats, form).weights
    for exponents, of_input in (((-12, -12), 0), ((-30, -30), 0), ((10, 10), 0), ((25, 25), 0), ((0, -12), 12)):
        scaled = [weight * 2.0**exponent for weight, exponent in zip(weights, exponents, strict=True)]
        factor = 2.0**of_input
        rescaled = LayerStats(stats.gram * factor**2, stats.mean_abs * factor, stats.count, stats.inputs * factor)
        after = solver.quantize(scaled, rescaled, form).weights
        for one, other, exponent in zip(before, after, exponents, strict=True):
            assert torch.equal(one.codes, other.codes), (name, exponent)
            assert torch.equal(one.dequantize() * 2.0**exponent, other.dequantize())


@pytest.mark.parametrize("name", METHODS)
def test_a_sweep_quantizes_weights_of_any_magnitude_alike(name: str) -> None:
    solver = method(name)
    weights, stats = layer()
    form = solver.format(4)
    before = solve_relative(solver, weights, stats, [form])[0].weights
    for exponent in (-90, 90):
        scaled = [weight * 2.0**exponent for weight in weights]
        after = solve_relative(solver, scaled, stats, [form])[0].weights
        assert all(torch.equal(one.codes, other.codes) for one, other in zip(before, after, strict=True))
        restored = [QuantizedWeight.unpack(one.pack(), one.shape, form).dequantize() for one in after]
        for one, values in zip(before, restored, strict=True):
            assert torch.equal(one.dequantize() * 2.0**exponent, values)


@pytest.mark.parametrize("exponents", [(-12, 0), (-20, 12), (14, -14)])
def test_rows_of_unlike_magnitude_each_keep_their_own_relative_error(exponents: tuple[int, int]) -> None:
    weight = 0.03 * torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    scaled = weight * 2.0 ** torch.tensor(exponents)[:, None]
    stored = round_nearest(scaled, Format(8))
    assert torch.equal(stored.codes, round_nearest(weight, Format(8)).codes)


def test_a_weight_too_large_for_halves_is_quantized() -> None:
    weight = torch.tensor([[0.0, 1e6, 2e6, 3e6]])
    assert torch.allclose(round_nearest(weight, Format(2)).dequantize(), weight, rtol=1e-3)
