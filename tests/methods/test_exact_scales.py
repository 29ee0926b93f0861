"""Measured weights are those that a loader computes: codes less zero, times scale, both in the model's dtype."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmq_sweeps.methods.auto_gptq import AutoGPTQ
from mmq_sweeps.methods.auto_round import AutoRound
from mmq_sweeps.methods.autoawq import AutoAWQ
from mmq_sweeps.methods.awq import AWQ
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.coordinate_descent import CoordinateDescent
from mmq_sweeps.methods.formats import DTYPES, Format, QuantizedWeight, round_nearest, storable_scale
from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.methods.hqq import HQQ
from mmq_sweeps.methods.magnitude import solve_relative
from mmq_sweeps.methods.rtn import RoundToNearest
from mmq_sweeps.methods.uniform import Uniform

METHODS = {
    "uniform": lambda _size, _symmetric: Uniform(),
    "rtn": RoundToNearest,
    "gptq": GPTQ,
    "gptq groups on the way": lambda size, symmetric: GPTQ(size, symmetric, act_order=False, static_groups=False),
    "awq": AWQ,
    "hqq": lambda size, _symmetric: HQQ(size),
    "coordinate_descent": CoordinateDescent,
    "auto_gptq": AutoGPTQ,
    "autoawq": lambda size, symmetric: AutoAWQ("channel" if size == "tensor" else size, symmetric),
    "auto_round": lambda size, symmetric: AutoRound(size, symmetric, iterations=5),
}
LIBRARIES = {"auto_gptq": "auto_gptq", "autoawq": "awq", "auto_round": "auto_round"}
# The largest and the smallest magnitudes are for halves, which have the fewest exponents.
CASES = [("float32", 0.03), ("bfloat16", 0.03), ("float16", 0.03), ("float16", 2e-6), ("float16", 300.0)]
SHAPES = [("tensor", False), ("channel", True), (16, False), (16, True)]


def layer(dtype: torch.dtype, std: float) -> tuple[list[Tensor], LayerStats]:
    """Return two weights ``[24, 32]`` of a model in ``dtype`` that share an input, with rows of unlike magnitude."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 32, generator=generator) * torch.logspace(-1, 1, 32)
    rows = std * torch.logspace(-2, 0, 24)[:, None]
    weights = [(rows * torch.randn(24, 32, generator=generator)).to(dtype).float() for _ in range(2)]
    return weights, LayerStats(x.T @ x / len(x), x.abs().mean(dim=0), len(x), x)


def loaded(quantized: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Return the weight as a loader of compressed-tensors makes it."""
    scale = quantized.grid.scale.to(dtype)
    steps = quantized.codes.to(torch.int16).reshape(*scale.shape, -1) - quantized.grid.zero.to(torch.int16)[:, :, None]
    return (steps.to(dtype) * scale[:, :, None]).reshape(quantized.shape)


@pytest.mark.parametrize(("dtype", "std"), CASES)
@pytest.mark.parametrize("name", METHODS)
def test_a_loader_gets_the_weight_that_is_measured(name: str, dtype: str, std: float) -> None:
    if name in LIBRARIES and find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"pip install -e '.[{name}]'")
    own = DTYPES[dtype]
    weights, stats = layer(own, std)
    for size, symmetric in SHAPES:
        method = METHODS[name](size, symmetric)
        formats = [replace(method.format(bits), dtype=dtype) for bits in (2, 8)]
        for form, solution in zip(formats, solve_relative(method, weights, stats, formats), strict=True):
            for solved in solution.weights:
                check(solved, form, own)


def check(solved: QuantizedWeight, form: Format, dtype: torch.dtype) -> None:
    scale, stored = solved.grid.scale, solved.pack()
    assert torch.equal(scale.to(dtype).float(), scale)
    size = 8 * sum(tensor.nbytes for tensor in stored.values())
    assert size == form.stored_bits(solved.shape, solved.input_scale is not None, solved.exponents)
    back = QuantizedWeight.unpack(stored, solved.shape, form)
    assert torch.equal(back.dequantize(), solved.dequantize())
    if not form.real_zero:
        plain = QuantizedWeight(
            back.codes, back.grid
        )  # Scales of inputs are stored by no loader; they are divided out.
        assert torch.equal(loaded(plain, dtype), plain.dequantize().to(dtype))


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(list(DTYPES)),
    st.integers(2, 8),
    st.sampled_from(["tensor", "channel", 4]),
    st.booleans(),
    st.integers(-24, 14),
    st.integers(0, 50),
)
def test_round_to_nearest_is_exact_at_any_magnitude(
    dtype: str, bits: int, size: int | str, symmetric: bool, exponent: int, seed: int
) -> None:
    form = Format(bits, size, symmetric, dtype=dtype)
    weight = torch.rand(5, 8, generator=torch.Generator().manual_seed(seed)) - 0.4
    weight = (weight * 2.0**exponent).to(DTYPES[dtype]).float()
    solved = round_nearest(weight, form)
    check(solved, form, DTYPES[dtype])
    # Nearest on the grid whose scale was rounded, so small halves with few digits cost no more than half a step.
    scale, _ = solved.grid.expand(8)
    inside = (solved.codes > 0) & (solved.codes < form.max_code)
    assert ((weight - solved.dequantize()).abs() <= 0.5001 * scale)[inside.expand_as(weight)].all()


@pytest.mark.parametrize(("dtype", "digits"), [("bfloat16", 8), ("float16", 11)])
@pytest.mark.parametrize("size", ["tensor", 4])
def test_scales_have_the_digits_of_the_dtype(dtype: str, digits: int, size: int | str) -> None:
    numbers = torch.rand(1000, generator=torch.Generator().manual_seed(0)).clamp(min=1e-3)
    rounded = storable_scale(numbers, Format(4, size, dtype=dtype))
    assert torch.equal(rounded, numbers.to(DTYPES[dtype]).float())
    assert ((rounded - numbers).abs() <= numbers * 2.0**-digits).all()
    assert ((rounded - numbers).abs() > numbers * 2.0 ** -(digits + 1)).any()


def test_scales_beyond_half_precision_become_the_nearest_half() -> None:
    scales = torch.tensor([1e6, 65504.0, 2.0**-20, 1e-9, 0.0])
    stored = storable_scale(scales, Format(4, dtype="float16"))
    assert stored.tolist() == [65504.0, 65504.0, 2.0**-20, 2.0**-24, 2.0**-14]
    assert storable_scale(torch.tensor([3.4e38]), Format(4, dtype="bfloat16")).isfinite().all()


@pytest.mark.parametrize(
    ("size", "dtype", "bits"),
    [("channel", "float32", 16), ("channel", "bfloat16", 16), ("tensor", "float32", 32), ("tensor", "float16", 16)],
)
def test_a_scale_takes_the_bits_of_its_dtype(size: str, dtype: str, bits: int) -> None:
    form, plain = Format(4, size, symmetric=True, dtype=dtype), 4 * 8 * 16
    assert form.stored_bits((8, 16)) == plain + bits * (1 if size == "tensor" else 8)


def test_subnormal_halves_need_no_power_of_two() -> None:
    weight = (torch.randn(4, 16, generator=torch.Generator().manual_seed(0)) * 2.0**-16).half().float()
    solved = round_nearest(weight, Format(8, dtype="float16"))
    assert float(solved.grid.scale.max()) < 2.0**-14
    assert solved.exponents == 0
    assert "exponent" not in solved.pack()


def test_a_dtype_that_no_model_has_is_an_error() -> None:
    with pytest.raises(ValueError, match="dtype='int8': choose float32, float16, bfloat16"):
        Format(4, dtype="int8")
