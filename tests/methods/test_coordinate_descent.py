from __future__ import annotations

import itertools

import pytest
import torch

from mmq_sweeps.methods.base import LayerStats, Method, quantize_many
from mmq_sweeps.methods.coordinate_descent import (
    Candidate,
    CoordinateDescent,
    Hessian,
    descend,
    output_error,
    refit,
    solve,
)
from mmq_sweeps.methods.factor import factorize
from mmq_sweeps.methods.formats import Format, fit_grid, round_nearest
from mmq_sweeps.methods.gptq import GPTQ
from tests.methods.test_gptq import layer, statistics
from tests.methods.test_gptq import solve as gptq_solve

FORMATS = [
    Format(2),
    Format(3, 8),
    Format(2, 16, symmetric=True),
    Format(3, symmetric=True),
    Format(2, "tensor"),
    Format(8),
]


def damped(gram: torch.Tensor, damping: float = 0.01) -> torch.Tensor:
    """Return the damped Gram matrix that both solvers minimise by, in double precision."""
    H = gram.double().clone()
    H.diagonal().add_(damping * H.diagonal().mean())
    return H


def row_errors(weight: torch.Tensor, restored: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    error = (weight - restored).double()
    return ((error @ H) * error).sum(dim=1)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_no_row_has_a_larger_output_error_than_gptq_leaves(form: Format) -> None:
    for seed in range(3):
        weight, stats = layer(seed)
        factor = factorize(stats.gram, 0.01, act_order=True)
        solved, started = solve(weight, stats.gram, factor, form), gptq_solve(weight, factor, form)
        H = damped(stats.gram)
        ours, theirs = (row_errors(weight, found.dequantize(), H) for found in (solved, started))
        if form.group_size == "tensor":
            ours, theirs = ours.sum(), theirs.sum()
        assert (ours <= theirs * 1.0001).all()
        assert ours.sum() < theirs.sum()


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("size", ["channel", 16])
def test_at_few_bits_it_leaves_much_less_error_than_gptq(bits: int, size: int | str) -> None:
    weight, stats = layer(1)
    form, H = Format(bits, size), damped(stats.gram)
    ours, theirs = (
        row_errors(weight, method.quantize([weight], stats, form).weights[0].dequantize(), H).sum()
        for method in (CoordinateDescent(size), GPTQ(size))
    )
    assert ours < 0.8 * theirs


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_both_steps_only_go_downhill(form: Format) -> None:
    weight, stats = layer(2)
    H, exact = Hessian(stats.gram, factorize(stats.gram)), damped(stats.gram)
    candidate = Candidate.of(round_nearest(weight, form))
    errors = [row_errors(weight, candidate.quantized(form).dequantize(), exact).sum()]
    for _ in range(3):
        refit(weight.T, candidate, H, form, block_size=8)
        errors.append(row_errors(weight, candidate.quantized(form).dequantize(), exact).sum())
        descend(weight.T, candidate, H, form.max_code, block_size=8)
        errors.append(row_errors(weight, candidate.quantized(form).dequantize(), exact).sum())
    assert all(after <= before * 1.0001 for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


def test_a_code_goes_to_the_best_of_all_its_values() -> None:
    weight, stats = layer(3, rows=4)
    form, H = Format(3), damped(stats.gram)
    candidate = Candidate.of(round_nearest(weight, form))
    for _ in range(50):
        descend(weight.T, candidate, Hessian(stats.gram, factorize(stats.gram)), form.max_code, block_size=8)
    final = candidate.quantized(form)
    least = row_errors(weight, final.dequantize(), H)
    scale, zero = final.grid.expand(32)
    for j in range(32):
        for code in range(8):
            other = final.dequantize().clone()
            other[:, j] = ((code - zero) * scale)[:, 0]
            assert (row_errors(weight, other, H) >= least * 0.9999).all()


def test_the_scale_is_the_best_for_the_codes() -> None:
    weight, stats = layer(4)
    form, H = Format(3, symmetric=True), damped(stats.gram)
    candidate = Candidate.of(round_nearest(weight, form))
    refit(weight.T, candidate, Hessian(stats.gram, factorize(stats.gram)), form, block_size=8)
    d = (candidate.Q - candidate.zero).T.double()
    best = ((weight.double() @ H) * d).sum(dim=1) / ((d @ H) * d).sum(dim=1)
    assert torch.allclose(candidate.scale[0].double(), best, rtol=1e-3)


@pytest.mark.parametrize("block_size", [1, 5, 8, 32, 128])
def test_the_output_error_is_the_quadratic_form(block_size: int) -> None:
    weight, stats = layer(5)
    expected = row_errors(weight, torch.zeros_like(weight), damped(stats.gram))
    found = output_error(weight.T, Hessian(stats.gram, factorize(stats.gram)), block_size)
    assert torch.allclose(found.double(), expected, rtol=1e-4)


def test_block_size_changes_speed_only() -> None:
    weight, stats = layer(6)
    weight, gram = weight.double(), stats.gram.double()
    factor = factorize(gram)
    found = [solve(weight, gram, factor, Format(3, 16), block_size=size) for size in (1, 5, 32, 128)]
    assert all(torch.equal(found[0].codes, other.codes) for other in found[1:])


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_what_is_stored_is_what_was_solved(form: Format) -> None:
    weight, stats = layer(7)
    method = CoordinateDescent(form.group_size, form.symmetric)
    found = method.quantize([weight], stats, form).weights[0]
    assert int(found.codes.max()) <= form.max_code
    stored = found.pack()
    assert form.stored_bits((12, 32)) == 8 * sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert torch.equal(type(found).unpack(stored, (12, 32), form).dequantize(), found.dequantize())
    assert method.format(form.bits) == GPTQ(form.group_size, form.symmetric).format(form.bits) == form


def test_white_inputs_leave_no_more_error_than_rounding() -> None:
    weight, _ = layer(8)
    white = LayerStats(torch.eye(32), torch.ones(32), 1000)
    for form in FORMATS:
        found = CoordinateDescent(form.group_size, form.symmetric).quantize([weight], white, form).weights[0]
        rounded = round_nearest(weight, form)
        assert (weight - found.dequantize()).square().sum() <= (weight - rounded.dequantize()).square().sum() * 1.0001


def test_a_weight_on_its_grid_is_kept() -> None:
    weight, stats = layer(9)
    exact = round_nearest(weight, Format(3)).dequantize()
    found = CoordinateDescent().quantize([exact], stats, Format(3)).weights[0]
    assert torch.allclose(found.dequantize(), exact, atol=2e-3)


def test_linears_that_share_an_input_are_solved_as_if_alone() -> None:
    weight, stats = layer(10)
    other, H = layer(11, rows=5)[0], damped(stats.gram)
    for form in (Format(3), Format(2, 8), Format(3, "tensor")):
        method = CoordinateDescent(form.group_size)
        together = method.quantize([weight, other], stats, form).weights
        alone = [method.quantize([one], stats, form).weights[0] for one in (weight, other)]
        errors = [
            [
                float(row_errors(one, found.dequantize(), H).sum())
                for one, found in zip((weight, other), pair, strict=True)
            ]
            for pair in (together, alone)
        ]
        assert [tuple(one.codes.shape) for one in together] == [(12, 32), (5, 32)]
        assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_formats_solved_together_equal_those_solved_alone_and_repeat_themselves() -> None:
    weight, stats = layer(12)
    formats = [Format(2), Format(3), Format(4)]
    together = quantize_many(CoordinateDescent(), [weight], stats, formats)
    for form, solution in zip(formats, together, strict=True):
        alone = CoordinateDescent().quantize([weight], statistics_of(stats), form).weights[0]
        assert torch.equal(alone.codes, solution.weights[0].codes)
        assert torch.equal(alone.dequantize(), solution.weights[0].dequantize())


def statistics_of(stats: LayerStats) -> LayerStats:
    """Copy the Gram matrix, mean magnitudes and count, without anything cached beside them."""
    return LayerStats(stats.gram, stats.mean_abs, stats.count)


def test_inputs_are_not_mutated() -> None:
    weight, stats = layer(13)
    before = weight.clone(), stats.gram.clone()
    CoordinateDescent().quantize([weight], stats, Format(2))
    assert torch.equal(weight, before[0])
    assert torch.equal(stats.gram, before[1])


def test_dead_inputs_get_zero_and_are_noted() -> None:
    weight, _ = layer(14)
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    x[:, [3, 17]] = 0.0
    for damping in (0.0, 0.01):
        solution = CoordinateDescent(damping=damping).quantize([weight], statistics(x), Format(4))
        assert solution.notes["dead_inputs"] == 2
        assert (solution.weights[0].dequantize()[:, [3, 17]] == 0).all()
        assert torch.isfinite(solution.weights[0].dequantize()).all()


def test_inputs_that_are_all_dead_are_rounded_as_gptq_does() -> None:
    weight, _ = layer(15)
    silent = LayerStats(torch.zeros(32, 32), torch.zeros(32), 10)
    ours, theirs = (method.quantize([weight], silent, Format(4)) for method in (CoordinateDescent(), GPTQ()))
    assert ours.notes == theirs.notes
    assert torch.equal(ours.weights[0].codes, theirs.weights[0].codes)


def test_fewer_tokens_than_columns_constant_and_zero_rows_are_solved() -> None:
    weight, stats = layer(16, tokens=5)
    weight[0], weight[1] = 0.0, 0.25
    found = CoordinateDescent().quantize([weight], stats, Format(3)).weights[0].dequantize()
    assert torch.isfinite(found).all()
    assert (found[0] == 0).all()


def test_the_factorization_is_shared_with_gptq() -> None:
    weight, stats = layer(17)
    GPTQ().quantize([weight], stats, Format(3))
    kept = dict(stats.shared)
    CoordinateDescent().quantize([weight], stats, Format(3))
    assert stats.shared.keys() == kept.keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "rounds=0: choose at least one round"),
        ({"sweeps": -1}, "sweeps=-1"),
        ({"block_size": 0}, "block_size=0"),
        ({"damping": -1.0}, "damping=-1.0"),
        ({"group_size": -3}, "group_size=-3"),
    ],
)
def test_fields_that_cannot_be_are_errors(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoordinateDescent(**fields)


def test_without_statistics_it_says_so() -> None:
    with pytest.raises(ValueError, match="needs the statistics"):
        CoordinateDescent().quantize([torch.ones(2, 4)], None, Format(4))


def test_it_is_a_method() -> None:
    assert isinstance(CoordinateDescent(), Method)
    assert fit_grid(torch.ones(1, 4), CoordinateDescent().format(2)).scale.dtype == torch.float32
