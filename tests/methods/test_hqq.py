from __future__ import annotations

import pytest
import torch

from mmq_sweeps.methods.base import Method
from mmq_sweeps.methods.formats import Format, fit_grid, round_nearest
from mmq_sweeps.methods.hqq import HQQ, lp_error, shrink, solve, update_zero

FORMATS = [Format(bits, size, real_zero=True) for bits in (2, 3, 4, 8) for size in ("tensor", "channel", 16)]


def weight(seed: int = 0, rows: int = 24, columns: int = 64) -> torch.Tensor:
    """Make a heavy-tailed weight with rows of different size and mean, as in trained models."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator)
    return 0.05 * normal * (1 + normal.abs()) * torch.logspace(-1, 1, rows)[:, None] + 0.01


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_no_group_has_a_larger_lp_error_than_its_range_rounded(form: Format) -> None:
    for seed in range(3):
        w = weight(seed)
        solved, rounded = solve(w, form), round_nearest(w, form)
        error, before = lp_error(w, solved.grid, 0.7), lp_error(w, rounded.grid, 0.7)
        assert (error <= before).all()
        assert error.sum() < before.sum()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_lp_error_is_below_that_of_round_to_nearest(bits: int) -> None:
    w = weight()
    rounded = round_nearest(w, Format(bits, 16)).dequantize()
    solved = HQQ(16).quantize([w], None, HQQ(16).format(bits)).weights[0].dequantize()
    assert (w - solved).abs().pow(0.7).sum() < (w - rounded).abs().pow(0.7).sum()


@pytest.mark.parametrize("lp_norm", [0.5, 0.7, 1.0])
def test_the_error_is_shrunk_as_published(lp_norm: float) -> None:
    error = torch.linspace(-2, 2, 41)
    expected = torch.tensor(
        [(1 if x > 0 else -1) * max(abs(x) - abs(x) ** (lp_norm - 1) / 10, 0) if x else 0.0 for x in error.tolist()]
    )
    assert torch.allclose(shrink(error, 10.0, lp_norm), expected, atol=1e-6)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_zeros_are_those_that_are_stored(form: Format) -> None:
    quantized = solve(weight(), form)
    stored = quantized.pack()
    assert form.stored_bits((24, 64)) == 8 * sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert torch.equal(type(quantized).unpack(stored, (24, 64), form).dequantize(), quantized.dequantize())
    assert int(quantized.codes.max()) <= form.max_code


def test_the_real_zero_costs_what_a_scale_costs() -> None:
    assert HQQ().format(4).stored_bits((24, 64)) - Format(4).stored_bits((24, 64)) == 24 * (16 - 4)


def test_it_repeats_itself_and_leaves_its_input_alone() -> None:
    w = weight()
    before = w.clone()
    first, second = (HQQ(16).quantize([w], None, HQQ(16).format(3)).weights[0] for _ in range(2))
    assert torch.equal(w, before)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.grid.zero, second.grid.zero)


def test_constant_groups_stay_finite() -> None:
    w = torch.full((3, 16), 0.25)
    w[1], w[2] = 0.0, 300.0
    assert torch.allclose(HQQ().quantize([w], None, HQQ().format(2)).weights[0].dequantize(), w, rtol=1e-3)


def published_solver(groups: torch.Tensor, max_code: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes, inverse scales and zeros of ``groups`` ``[G, N]`` as the published package computes them.

    ``optimize_weights_proximal_legacy`` of hqq 0.2.8 written out: it keeps inverse scales, and stops all groups together
    where their mean error first grows. (The package itself cannot be installed beside these tests: transformers imports
    it wherever it is found, and with it torch's compiler and its deprecation warnings.)
    """
    low, high = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
    scale = max_code / (high - low)
    zero, beta, best = -low * scale, 10.0, float("inf")
    for _ in range(20):
        codes = (groups * scale + zero).round().clamp(0, max_code)
        restored = (codes - zero) / scale
        error = groups - restored
        shrunk = error.sign() * (error.abs() - error.abs() ** (0.7 - 1) / beta).clamp(min=0)
        zero = (codes - (groups - shrunk) * scale).mean(dim=1, keepdim=True)
        beta *= 1.01
        if not (mean := float(error.abs().mean())) < best:
            break
        best = mean
    return (groups * scale + zero).round().clamp(0, max_code), scale, zero


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [8, 16, 64])
def test_the_lp_error_is_at_most_that_of_the_published_solver(bits: int, size: int) -> None:
    for seed in range(3):
        w = weight(seed) / 16  # Below one, as trained weights are: the penalty is on weights of that size.
        codes, inverse, zero = published_solver(w.reshape(-1, size), 2**bits - 1)
        theirs = ((codes - zero) / inverse).reshape(w.shape)
        ours = HQQ(size).quantize([w], None, HQQ(size).format(bits)).weights[0].dequantize()
        ratio = (w - ours).abs().pow(0.7).sum() / (w - theirs).abs().pow(0.7).sum()
        # Theirs keeps scales and zeros in float32, ours as stored; apart from that ours is never worse.
        assert 0.9 < ratio < 1.005


def test_a_step_equals_the_published_one() -> None:
    w = weight()
    low, high = w.amin(dim=1, keepdim=True), w.amax(dim=1, keepdim=True)
    scale, zero = (high - low) / 7, -low * 7 / (high - low)
    codes = (w / scale + zero).round().clamp(0, 7)
    error = w - (codes - zero) * scale
    shrunk = error.sign() * (error.abs() - error.abs() ** -0.3 / 10.0).clamp(min=0)
    expected = (codes - (w - shrunk) / scale).mean(dim=1, keepdim=True)
    assert torch.allclose(update_zero(w[:, None], scale, zero, 7, 10.0, 0.7), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lp_norm": 0.0}, "lp_norm=0.0: choose a norm above 0 and up to 1"),
        ({"beta": 0.0}, "beta=0.0"),
        ({"kappa": 0.9}, "kappa=0.9"),
        ({"iterations": 0}, "iterations=0"),
        ({"group_size": 0}, "group_size=0"),
    ],
)
def test_fields_that_cannot_be_are_errors(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HQQ(**fields)


def test_it_is_a_method() -> None:
    assert isinstance(HQQ(), Method)


def test_a_grid_with_a_real_zero_keeps_it_in_its_precision() -> None:
    grid = fit_grid(torch.tensor([[1000.0, 1000.001, 1000.002, 1000.001]]), Format(4, real_zero=True))
    assert torch.isfinite(grid.zero).all()
    assert torch.equal(grid.zero, grid.zero.half().float())
