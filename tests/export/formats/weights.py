"""Quantized weights with random codes, zeros and scales, for tests of formats."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from mmq_sweeps.export.formats.base import LinearSpec
from mmq_sweeps.methods.formats import Format, Grid, QuantizedWeight

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**31)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def quantized(
    format: Format, shape: tuple[int, int], seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> QuantizedWeight:
    """Return a weight whose scales are exact in ``dtype``, and whose codes and zeros take every value of theirs."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, format.max_code + 1, shape, dtype=torch.uint8, generator=generator)
    groups = format.groups(shape)
    scale = torch.rand(groups, generator=generator).add_(0.01).div_(30).to(dtype).float()
    zero = torch.randint(0, format.max_code + 1, groups, generator=generator).float()
    if format.symmetric:
        zero = torch.full(groups, float(2 ** (format.bits - 1)))
    return QuantizedWeight(codes, Grid(scale, zero, format))


def spec(
    format: Format, shape: tuple[int, int] = (32, 64), input_scaled: bool = False, kind: str = "linear"
) -> LinearSpec:
    return LinearSpec(format, shape, input_scaled, kind)


def specs(formats: dict[str, Format]) -> dict[str, LinearSpec]:
    return {name: spec(format) for name, format in formats.items()}


def assert_layout(layout: dict[str, tuple[torch.dtype, tuple[int, ...]]], tensors: dict[str, torch.Tensor]) -> None:
    """Assert that ``tensors`` have the dtypes and shapes of ``layout`` and can be written to a file."""
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == layout
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def assert_refused(found: str | None, *reasons: str) -> None:
    """Assert that a format's problem names all ``reasons``, and another format."""
    assert found is not None
    for reason in (*reasons, "use --format "):
        assert reason in found
