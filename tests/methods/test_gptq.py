from __future__ import annotations

import pytest
import torch

from mmq_sweeps.affine import Format, fit_grid, round_nearest
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.gptq import GPTQ, MAX_DAMPING, factorize, solve

FORMATS = [Format(2), Format(3), Format(4, 8), Format(3, symmetric=True), Format(4, "tensor")]


def layer(seed: int, columns: int = 32, rows: int = 12, tokens: int = 256) -> tuple[torch.Tensor, LayerStats]:
    """A random weight ``[O, I]`` and the statistics of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + 0.3 * torch.eye(columns)
    x = torch.randn(tokens, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), statistics(x)


def statistics(x: torch.Tensor) -> LayerStats:
    return LayerStats(x.T @ x / len(x), x.abs().mean(dim=0), len(x))


def output_error(weight: torch.Tensor, restored: torch.Tensor, stats: LayerStats) -> float:
    error = weight - restored
    return float(((error @ stats.gram) * error).sum())


def optimal_brain_quantization(weight: torch.Tensor, gram: torch.Tensor, damping: float, form: Format) -> torch.Tensor:
    """The recursion that GPTQ's Cholesky form stands for (arXiv 2208.11580), one column at a time in double precision.

    After a column is rounded, the inverse Hessian loses it by Gaussian elimination; no factorization is involved.
    """
    W, H = weight.double().clone(), gram.double().clone()
    H.diagonal().add_(damping * H.diagonal().mean())
    inverse = torch.linalg.inv(H)
    grid = fit_grid(weight.double(), form)
    scale, zero = (part.expand(weight.shape) for part in grid.expand(weight.shape[1]))
    codes = torch.empty_like(W)
    for j in range(W.shape[1]):
        codes[:, j] = torch.round(W[:, j] / scale[:, j] + zero[:, j]).clamp(0, form.max_code)
        error = (W[:, j] - (codes[:, j] - zero[:, j]) * scale[:, j]) / inverse[j, j]
        W[:, j + 1 :] -= torch.outer(error, inverse[j, j + 1 :])
        inverse -= torch.outer(inverse[:, j], inverse[j, :]) / inverse[j, j]
    return codes.to(torch.uint8)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_equals_the_column_by_column_recursion(form: Format) -> None:
    for seed in range(3):
        weight, stats = layer(seed)
        factor = factorize(stats.gram.double(), damping=0.01, act_order=False)
        expected = optimal_brain_quantization(weight, stats.gram, 0.01, form)
        assert torch.equal(solve(weight.double(), factor, form, block_size=8).codes, expected)


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_never_loses_to_rounding_on_correlated_inputs(form: Format, act_order: bool) -> None:
    for seed in range(3):
        weight, stats = layer(seed)
        solved = GPTQ(form.group_size, form.symmetric, act_order=act_order).quantize([weight], stats, form).weights[0]
        rounded = round_nearest(weight, form)
        assert output_error(weight, solved.dequantize(), stats) < output_error(weight, rounded.dequantize(), stats)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_white_inputs_make_it_round_to_nearest(form: Format) -> None:
    weight, _ = layer(0)
    white = LayerStats(torch.eye(32), torch.ones(32), 1000)
    solved = GPTQ(form.group_size, form.symmetric).quantize([weight], white, form).weights[0]
    assert torch.equal(solved.codes, round_nearest(weight, form).codes)


def test_block_size_changes_speed_only() -> None:
    weight, stats = layer(1)
    factor = factorize(stats.gram.double())
    codes = [solve(weight.double(), factor, Format(3), block_size=size).codes for size in (1, 5, 32, 128)]
    assert all(torch.equal(codes[0], other) for other in codes[1:])


def test_linears_that_share_an_input_are_solved_as_if_alone() -> None:
    weight, stats = layer(2)
    other = layer(3)[0]
    together = GPTQ().quantize([weight, other], stats, Format(3)).weights
    assert torch.equal(together[1].codes, GPTQ().quantize([other], stats, Format(3)).weights[0].codes)


def test_inputs_are_not_mutated() -> None:
    weight, stats = layer(4)
    before = weight.clone(), stats.gram.clone()
    GPTQ().quantize([weight], stats, Format(2))
    assert torch.equal(weight, before[0])
    assert torch.equal(stats.gram, before[1])


def test_dead_inputs_get_zero_and_are_noted() -> None:
    weight, _ = layer(5)
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    x[:, [3, 17]] = 0.0
    solution = GPTQ().quantize([weight], statistics(x), Format(4))
    assert solution.notes["dead_inputs"] == 2
    assert (solution.weights[0].dequantize()[:, [3, 17]] == 0).all()


def test_fewer_tokens_than_columns_is_solved() -> None:
    weight, stats = layer(6, tokens=5)
    solved = GPTQ().quantize([weight], stats, Format(3)).weights[0]
    assert torch.isfinite(solved.dequantize()).all()


def test_damping_grows_until_an_indefinite_matrix_is_definite_and_is_noted() -> None:
    weight, stats = layer(7)
    eigenvalues = torch.linalg.eigvalsh(stats.gram)
    indefinite = stats.gram - (eigenvalues[0] + 0.05 * stats.gram.diagonal().mean()) * torch.eye(32)
    solution = GPTQ().quantize([weight], LayerStats(indefinite, stats.mean_abs, 10), Format(4))
    assert solution.notes["damping"] > 0.01
    assert torch.isfinite(solution.weights[0].dequantize()).all()


def test_a_matrix_beyond_damping_and_one_that_is_not_finite_are_errors() -> None:
    with pytest.raises(ValueError, match="failed even with damping 10"):
        factorize(torch.tensor([[1.0, -100.0], [-100.0, 1.0]]))
    with pytest.raises(ValueError, match="not finite"):
        factorize(torch.full((3, 3), float("nan")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"damping": -1.0}, f"damping=-1.0: choose a fraction from 0 to {MAX_DAMPING:g}"),
        ({"block_size": 0}, "block_size=0"),
        ({"group_size": -3}, "group_size=-3"),
    ],
)
def test_fields_that_cannot_be_are_errors(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTQ(**fields)


def test_without_statistics_it_says_so() -> None:
    with pytest.raises(ValueError, match="GPTQ needs the statistics"):
        GPTQ().quantize([torch.ones(2, 4)], None, Format(4))
