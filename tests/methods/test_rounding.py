from __future__ import annotations

import torch

from mmq_sweeps.methods.base import Method
from mmq_sweeps.methods.formats import Format
from mmq_sweeps.methods.rtn import RoundToNearest
from mmq_sweeps.methods.uniform import Uniform


def weight() -> torch.Tensor:
    return torch.randn(8, 32, generator=torch.Generator().manual_seed(0))


def test_uniform_is_the_min_max_rounding_of_the_study() -> None:
    w = weight()
    # The study's own arithmetic: levels between the tensor's minimum and maximum, both ends met.
    step = (w.max() - w.min()) / (2**4 - 1)
    expected = torch.round((w - w.min()) / step) * step + w.min()
    solved = Uniform().quantize([w], None, Uniform().format(4)).weights[0]
    assert torch.allclose(solved.dequantize(), expected, atol=1e-5)


def test_finer_groups_lose_less() -> None:
    w = weight() * torch.logspace(-2, 1, 8)[:, None]
    errors = [
        float((w - RoundToNearest(size).quantize([w], None, Format(3, size)).weights[0].dequantize()).square().sum())
        for size in ("tensor", "channel", 8)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_more_bits_lose_less() -> None:
    w = weight()
    for method in (RoundToNearest(), Uniform()):
        errors = [
            float((w - method.quantize([w], None, method.format(bits)).weights[0].dequantize()).square().sum())
            for bits in range(2, 9)
        ]
        assert errors == sorted(errors, reverse=True)


def test_they_are_methods() -> None:
    assert isinstance(Uniform(), Method)
    assert isinstance(RoundToNearest(), Method)
