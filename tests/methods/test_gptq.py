from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from mmq_sweeps.methods import factor as factor_module
from mmq_sweeps.methods import gptq
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.factor import MAX_DAMPING, Factor, factorize, factorized_in_place
from mmq_sweeps.methods.formats import Format, QuantizedWeight, fit_grid, round_nearest
from mmq_sweeps.methods.gptq import GPTQ, solve_many

FORMATS = [Format(2), Format(3), Format(4, 8), Format(3, symmetric=True), Format(4, "tensor")]


def layer(seed: int, columns: int = 32, rows: int = 12, tokens: int = 256) -> tuple[torch.Tensor, LayerStats]:
    """Make a random weight ``[O, I]`` and the statistics of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + 0.3 * torch.eye(columns)
    x = torch.randn(tokens, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), statistics(x)


def statistics(x: torch.Tensor) -> LayerStats:
    return LayerStats(x.T @ x / len(x), x.abs().mean(dim=0), len(x))


def solve(weight: torch.Tensor, factor: Factor, form: Format, block_size: int = 32) -> QuantizedWeight:
    return solve_many([weight], factor, [form], block_size)[0][0]


def output_error(weight: torch.Tensor, restored: torch.Tensor, stats: LayerStats) -> float:
    error = weight - restored
    return float(((error @ stats.gram) * error).sum())


def optimal_brain_quantization(weight: torch.Tensor, gram: torch.Tensor, damping: float, form: Format) -> torch.Tensor:
    """Solve by the recursion behind GPTQ's Cholesky form (arXiv 2208.11580), column by column in double precision.

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


@pytest.mark.parametrize("group_size", ["channel", 8])
@pytest.mark.parametrize("static_groups", [True, False])
def test_all_bit_widths_at_once_equal_one_by_one(group_size: int | str, static_groups: bool) -> None:
    weight, stats = layer(8, columns=96, rows=40)
    method = GPTQ(group_size, act_order=False, static_groups=static_groups)
    formats = [method.format(bits) for bits in (2, 3, 4, 8)]
    together = method.quantize_many([weight, weight[:7]], stats, formats)
    for form, solution in zip(formats, together, strict=True):
        alone = method.quantize([weight, weight[:7]], replace(stats, shared={}), form)
        for one, other in zip(solution.weights, alone.weights, strict=True):
            assert one.format == form
            assert torch.equal(one.codes, other.codes)
            assert torch.equal(one.grid.scale, other.grid.scale)


def test_rows_are_solved_in_chunks_without_changing_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, stats = layer(9, rows=50)
    factor = factorize(stats.gram.double())
    weights = [weight[:31].double(), weight[31:].double()]
    formats = [Format(2), Format(3, 8)]
    whole = solve_many(weights, factor, formats)
    monkeypatch.setattr(gptq, "LEAST_CHUNK", 1)
    chunked = solve_many(weights, factor, formats)
    for one, other in itertools.product(range(2), repeat=2):
        assert torch.equal(whole[one][other].codes, chunked[one][other].codes)


def test_groups_fitted_on_the_way_see_columns_corrected_by_all_before_them() -> None:
    weight, stats = layer(10)
    form = Format(2, 8)
    solved = GPTQ(8, act_order=False, static_groups=False).quantize([weight], stats, form).weights[0]
    W, H = weight.double().clone(), stats.gram.double().clone()
    H.diagonal().add_(0.01 * H.diagonal().mean())
    inverse = torch.linalg.inv(H)
    for j in range(32):
        if j % 8 == 0:
            grid = fit_grid(W[:, j : j + 8].float(), Format(2))
            assert torch.allclose(solved.grid.scale[:, j // 8], grid.scale[:, 0], rtol=2**-10)
        q = (solved.codes[:, j] - solved.grid.zero[:, j // 8]) * solved.grid.scale[:, j // 8]
        W[:, j + 1 :] -= torch.outer((W[:, j] - q) / inverse[j, j], inverse[j, j + 1 :])
        inverse -= torch.outer(inverse[:, j], inverse[j, :]) / inverse[j, j]


@pytest.mark.parametrize("block", [5, 16, 512])
@pytest.mark.parametrize("act_order", [False, True])
def test_the_factor_is_that_of_the_damped_matrix(monkeypatch: pytest.MonkeyPatch, block: int, act_order: bool) -> None:
    monkeypatch.setattr(factor_module, "BLOCK", block)
    gram = layer(11)[1].gram.double()
    factor = factorize(gram, 0.1, act_order)
    H = gram + 0.1 * gram.diagonal().mean() * torch.eye(32, dtype=torch.float64)
    H = H[factor.order][:, factor.order]
    # H = M^T M, and the rows of ``lower`` are those of M over its diagonal.
    unit = factor.lower.tril(-1) + torch.eye(32, dtype=torch.float64)
    squares = torch.linalg.solve(unit.T, torch.linalg.solve(unit.T, H).T)
    assert torch.allclose(squares, squares.diagonal().diag())
    assert bool((factor.order == torch.arange(32)).all()) != act_order


@pytest.mark.parametrize("block", [5, 512])
def test_a_factor_in_the_gram_matrix_s_own_memory_leaves_it_as_it_was(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(factor_module, "BLOCK", block)
    weight, stats = layer(12)
    gram = (stats.gram + stats.gram.T) / 2
    before = gram.clone()
    expected = factorize(gram).lower.tril(-1)
    with factorized_in_place(gram, 0.01, True) as factor:
        assert factor.lower.data_ptr() == gram.data_ptr()
        assert torch.equal(factor.lower.tril(-1), expected)
    assert torch.equal(gram, before)
    with pytest.raises(RuntimeError, match="stop"), factorized_in_place(gram, 0.01, True):
        raise RuntimeError("stop")
    assert torch.equal(gram, before)
    indefinite = torch.tensor([[1.0, -100.0], [-100.0, 1.0]])
    kept = indefinite.clone()
    with pytest.raises(ValueError, match="failed even"), factorized_in_place(indefinite, 0.01, True):
        pass
    assert torch.equal(indefinite, kept)
    # A matrix with too many columns to keep its factor is solved that way.
    small = GPTQ().quantize([weight], LayerStats(gram, stats.mean_abs, 1), Format(3)).weights[0]
    monkeypatch.setattr(gptq, "KEPT_COLUMNS", 31)
    large_stats = LayerStats(gram, stats.mean_abs, 1)
    assert torch.equal(GPTQ().quantize([weight], large_stats, Format(3)).weights[0].codes, small.codes)
    assert not large_stats.shared
    assert torch.equal(gram, before)


def test_one_factorization_serves_every_method_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, stats = layer(13)
    GPTQ().quantize_many([weight], stats, [Format(2), Format(4)])
    monkeypatch.setattr(gptq, "factorize", lambda *_: pytest.fail("factorized again"))
    GPTQ(group_size=8).quantize([weight], stats, Format(4, 8))
    assert len(stats.shared) == 1


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


def test_inputs_that_are_all_zero_and_a_matrix_beyond_damping_fall_back_to_rounding_by_name() -> None:
    weight, stats = layer(14)
    beyond = stats.gram - 1000 * stats.gram.diagonal().mean() * (torch.ones(32, 32) - torch.eye(32))
    for gram, reason in ((torch.zeros(32, 32), "every input is always zero"), (beyond, "failed even with damping 10")):
        for solution in GPTQ().quantize_many([weight], LayerStats(gram, stats.mean_abs, 10), [Format(2), Format(4)]):
            form = solution.weights[0].format
            assert solution.notes["fallback"] == "rtn"
            assert reason in str(solution.notes["reason"])
            assert torch.equal(solution.weights[0].codes, round_nearest(weight, form).codes)


def test_constant_inputs_are_solved_and_damping_that_is_too_small_for_them_grows() -> None:
    weight, _ = layer(15)
    x = torch.ones(50, 32) * torch.arange(1, 33)
    for damping in (0.01, 0.0):
        solution = GPTQ(damping=damping).quantize([weight], statistics(x), Format(3))
        assert ("damping" in solution.notes) == (damping == 0)
        error = output_error(weight, solution.weights[0].dequantize(), statistics(x))
        # Only one direction counts, so the last columns compensate for the others' errors.
        assert error < 0.01 * output_error(weight, round_nearest(weight, Format(3)).dequantize(), statistics(x))


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
        ({"group_size": 8, "static_groups": False}, "static_groups=False with act_order=True and group_size=8"),
    ],
)
def test_fields_that_cannot_be_are_errors(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTQ(**fields)


def test_without_statistics_it_says_so() -> None:
    with pytest.raises(ValueError, match="GPTQ needs the statistics"):
        GPTQ().quantize([torch.ones(2, 4)], None, Format(4))


def test_a_layer_of_several_blocks_is_that_of_double_precision_whatever_else_is_solved() -> None:
    # Large enough for the products that go to oneDNN.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1500, 1100, generator=generator) @ (
        torch.randn(1100, 1100, generator=generator) / 40 + torch.eye(1100)
    )
    gram, weight = x.T @ x / len(x), torch.randn(256, 1100, generator=generator) / 33
    gram = (gram + gram.T) / 2
    before, formats = gram.clone(), [Format(2), Format(4)]
    with factorized_in_place(gram, 0.01, True) as factor:
        together = solve_many([weight], factor, formats)
        alone = solve_many([weight], factor, formats[1:])
    assert torch.equal(gram, before)
    assert torch.equal(together[1][0].codes, alone[0][0].codes)
    exact = solve_many([weight.double()], factorize(gram.double()), formats[1:], grids=[[alone[0][0].grid]])[0][0]
    assert (exact.codes == alone[0][0].codes).double().mean() > 0.99

    def error(codes: torch.Tensor) -> float:
        change = (replace(alone[0][0], codes=codes).dequantize() - weight).double()
        return float(((change @ gram.double()) * change).sum())

    assert error(alone[0][0].codes) < 1.001 * error(exact.codes)
