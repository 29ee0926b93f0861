from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mmq_sweeps.methods.awq import AWQ
from mmq_sweeps.methods.awq_search import clip, errors, race
from mmq_sweeps.methods.awq_search.clip import best_clipped, quantize_clipped
from mmq_sweeps.methods.awq_search.errors import output_error, rounding_error
from mmq_sweeps.methods.awq_search.scales import CARRIED, Scale, candidate_scales, search_scale, search_scales
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.formats import Format, QuantizedWeight, fit_grid, round_nearest
from tests.methods.test_gptq import FORMATS, layer


def salient_layer(seed: int) -> tuple[torch.Tensor, LayerStats, torch.Tensor]:
    """Make a layer in which a few input columns carry large activations, as in language models; return its inputs too."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 32, generator=generator)
    x[:, :3] *= 30
    weight = torch.randn(12, 32, generator=generator)
    return weight, LayerStats(x.T @ x / len(x), x.abs().mean(dim=0), len(x)), x


def error(weight: torch.Tensor, quantized: QuantizedWeight, stats: LayerStats) -> float:
    return float(output_error(weight - quantized.dequantize(), stats.gram).sum())


def restored(weights: list[torch.Tensor], scale: torch.Tensor, form: Format) -> list[torch.Tensor]:
    """Return the values that ``weights`` represent once rounded with an input scale."""
    return [
        weight + rounding_error(scaled, fit_grid(scaled, form)) / scale
        for weight in weights
        for scaled in [weight.float() * scale]
    ]


def least_by(
    weights: list[torch.Tensor], stats: LayerStats, form: Format, loss: Callable[[list[torch.Tensor]], float]
) -> Scale:
    """Return the first candidate scale whose represented weights have the least ``loss``."""
    candidates = candidate_scales(weights, stats.mean_abs, form, 20, True)
    return min(candidates, key=lambda candidate: loss(restored(weights, candidate.values, form)))


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("duo_scaling", [False, True])
def test_is_never_worse_than_rounding_on_its_own_gram_matrix(form: Format, duo_scaling: bool) -> None:
    for seed in range(4):
        weight, stats = layer(seed)
        method = AWQ(form.group_size, form.symmetric, duo_scaling=duo_scaling)
        assert error(weight, method.quantize([weight], stats, form).weights[0], stats) <= error(
            weight, round_nearest(weight, form), stats
        ) * (1 + 1e-5)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_clipping_makes_no_row_worse(form: Format) -> None:
    weight, stats = layer(7)
    method = AWQ(form.group_size, form.symmetric)
    scale = search_scale([weight], stats, [form])[0].values
    errors = []
    for fractions in (method.cuts(), [1.0]):
        solved, losses = quantize_clipped(weight, scale, stats.gram, form, fractions)
        errors.append(output_error(weight - solved.dequantize(), stats.gram))
        assert torch.allclose(losses.float(), errors[-1], rtol=1e-4)
    if form.group_size == "tensor":
        errors = [each.sum() for each in errors]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()
    assert errors[0].sum() < errors[1].sum()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_wins_clearly_where_few_columns_carry_the_activations(bits: int) -> None:
    weight, stats, _ = salient_layer(0)
    solution = AWQ().quantize([weight], stats, Format(bits))
    assert solution.notes["scale_exponent"] > 0
    assert error(weight, solution.weights[0], stats) < 0.7 * error(weight, round_nearest(weight, Format(bits)), stats)


def test_the_loss_is_the_squared_output_error_over_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, stats, x = salient_layer(1)
    difference = weight - round_nearest(weight, Format(3)).dequantize()
    expected = (x @ difference.T).square().mean(dim=0)
    before = stats.gram.clone()
    for block, columns, cached in itertools.product((1, 7, 32, 1024), (1, 3), (0, 2**20)):
        monkeypatch.setattr(errors, "GRAM_BLOCK", block)
        monkeypatch.setattr(errors, "GRAM_COLUMNS", columns * block)
        monkeypatch.setattr(errors, "CACHED_BYTES", cached)
        assert torch.allclose(output_error(difference, stats.gram), expected, rtol=1e-4)
        assert torch.equal(stats.gram, before)


def test_the_loss_on_a_wide_input_is_that_of_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    x, error = torch.randn(300, 600, generator=generator), torch.randn(40, 600, generator=generator)
    expected = (x.double() @ error.double().T).square().mean(dim=0)
    assert torch.allclose(output_error(error, x.T @ x / len(x)).double(), expected, rtol=1e-4)


def test_linears_that_share_an_input_share_the_scale() -> None:
    weight, stats, _ = salient_layer(2)
    solved = AWQ().quantize([weight, weight.flip(0) * 2], stats, Format(3)).weights
    assert torch.equal(solved[0].input_scale, solved[1].input_scale)
    carried = search_scales([weight, weight.flip(0) * 2], stats, [Format(3)])[0]
    assert 1 < len(carried) <= CARRIED
    assert any(torch.equal(solved[0].input_scale.float(), scale.values) for scale in carried)
    unclipped = AWQ(clip_steps=0).quantize([weight, weight.flip(0) * 2], stats, Format(3)).weights
    assert torch.equal(unclipped[0].input_scale.float(), carried[0].values)


@pytest.mark.parametrize("form", [Format(2), Format(3, 8), Format(4, symmetric=True), Format(3, 8, True)], ids=str)
def test_of_the_best_scales_that_one_is_taken_which_is_best_after_clipping(
    form: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = AWQ(form.group_size, form.symmetric)
    for seed in range(4):
        weight, stats = layer(seed, rows=64)
        carried = search_scales([weight], stats, [form])[0]
        losses = [quantize_clipped(weight, one.values, stats.gram, form, method.cuts())[1].sum() for one in carried]
        solved = method.quantize([weight], stats, form).weights[0]
        assert error(weight, solved, stats) == pytest.approx(float(min(losses)), rel=1e-4)
    # Of many rows a sample decides: its choice is among the best cuts, and never loses to rounding.
    monkeypatch.setattr(clip, "DECIDING_ROWS", 32)
    shared = method.quantize([weight], stats, form).weights[0]
    assert any(torch.equal(shared.input_scale.float(), one.values) for one in carried)
    assert error(weight, shared, stats) <= max(losses) * (1 + 1e-4)


def test_what_would_lose_to_no_scaling_is_not_carried() -> None:
    weight, _ = layer(3)
    # White inputs: most scales only add error.
    white = LayerStats(torch.eye(32), torch.ones(32), 100)
    rounded = error(weight, round_nearest(weight, Format(4)), white)
    for scale in search_scales([weight], white, [Format(4)])[0]:
        assert float(quantize_clipped(weight, scale.values, white.gram, Format(4), [1.0])[1].sum()) <= rounded * 1.00001


def test_clipping_is_chosen_only_where_it_helps() -> None:
    weight = torch.full((1, 64), 0.1) * torch.linspace(-1, 1, 64)
    weight[0, 0] = 4.0
    gram = torch.eye(64)
    gram[0, 0] = 1e-6
    cuts, no_scale = [1 - step / 10 for step in range(10)], torch.ones(64)
    cut, uncut = (quantize_clipped(weight, no_scale, gram, Format(3), tried)[0] for tried in (cuts, [1.0]))
    assert cut.grid.scale.item() < 0.5 * uncut.grid.scale.item()
    even = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert quantize_clipped(even, torch.ones(4), torch.eye(4), Format(2), cuts)[0].grid.scale.item() == 1.0


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("duo_scaling", [False, True])
def test_the_choice_is_the_best_of_all_candidates(form: Format, duo_scaling: bool) -> None:
    weight, stats, _ = salient_layer(5)
    weights = [weight, weight.flip(1)[:7]]
    candidates = candidate_scales(weights, stats.mean_abs, form, 20, duo_scaling)
    losses = [
        sum(
            error(weight, QuantizedWeight(rounded.codes, rounded.grid, each.values), stats)
            for weight in weights
            for rounded in [round_nearest(weight * each.values, form)]
        )
        for each in candidates
    ]
    found = search_scale(weights, stats, [form], 20, duo_scaling)[0]
    chosen = next(i for i, each in enumerate(candidates) if torch.equal(each.values, found.values))
    assert losses[chosen] <= min(losses) * (1 + 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_of_many_rows_the_best_candidate_is_found_without_measuring_all(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stats, _ = salient_layer(seed)
    generator = torch.Generator().manual_seed(seed)
    # A few rows that outweigh the rest, which rows drawn blindly would miss.
    weight = torch.randn(1200, 32, generator=generator) * torch.where(torch.arange(1200) % 300 == 7, 30.0, 1.0)[:, None]
    weights, formats = [weight, torch.randn(1100, 32, generator=generator)], [Format(bits, 8) for bits in (2, 3, 4)]
    scales = torch.stack([each.values for each in candidate_scales(weights, stats.mean_abs, formats[0], 20, True)])
    trials = list(map(race.Trial, formats))
    raced = race.race(weights, scales, stats.gram, trials)
    first = race.race(weights, scales, stats.gram, trials, first_only=True)
    monkeypatch.setattr(race, "BEST_FEW", replace(race.BEST_FEW, least_rows=10**6))
    measured = race.race(weights, scales, stats.gram, trials)
    assert torch.isinf(raced).any()
    assert torch.isfinite(measured).all()
    finished = torch.isfinite(raced)
    assert torch.allclose(raced[finished], measured[finished], rtol=1e-5)
    assert torch.equal(raced.argmin(dim=1), measured.argmin(dim=1))
    assert torch.equal(first.argmin(dim=1), measured.argmin(dim=1))


@pytest.mark.parametrize("group_size", ["channel", 8, "tensor"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_first_alone_is_found_by_a_quicker_race(group_size: int | str, symmetric: bool) -> None:
    weight, stats, _ = salient_layer(8)
    generator = torch.Generator().manual_seed(8)
    sizes = torch.randn(600, 1, generator=generator).mul(0.6).exp()
    sizes[::97] *= 10
    weight = torch.randn(600, 32, generator=generator) * sizes
    formats = [Format(bits, group_size, symmetric) for bits in (2, 4, 8)]
    scales = torch.stack([each.values for each in candidate_scales([weight], stats.mean_abs, formats[0], 20, True)])
    measured = race.race([weight], scales, stats.gram, list(map(race.Trial, formats)))
    assert torch.isfinite(measured).all()
    first = race.race([weight], scales, stats.gram, list(map(race.Trial, formats)), first_only=True)
    assert torch.equal(first.argmin(dim=1), measured.argmin(dim=1))
    # Few rows decide on a grid of the whole matrix, which is not raced.
    assert torch.isinf(first).any() == (group_size != "tensor")


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_a_single_scale_without_clipping_is_rounded_as_when_losses_are_measured(form: Format) -> None:
    weight, stats = layer(5)
    scale = search_scale([weight], stats, [form])[0]
    chosen, (quick,) = best_clipped([weight], [scale], stats.gram, form, [1.0])
    measured, _ = quantize_clipped(weight, scale.values, stats.gram, form, [1.0])
    assert chosen is scale
    assert torch.equal(quick.codes, measured.codes)
    assert torch.equal(quick.grid.scale, measured.grid.scale)
    assert torch.equal(quick.grid.zero, measured.grid.zero)


def test_rows_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, stats = layer(3, rows=40)
    for form in FORMATS:
        whole = AWQ(form.group_size, form.symmetric).quantize([weight], stats, form).weights[0]
        for module in (errors, race):
            monkeypatch.setattr(module, "CHUNK", 7 * 32)
        monkeypatch.setattr(errors, "CHUNK_ROWS", 1)
        monkeypatch.setattr(race, "PRODUCT_ROWS", 7)
        parts = AWQ(form.group_size, form.symmetric).quantize([weight], stats, form).weights[0]
        monkeypatch.undo()
        assert torch.equal(whole.codes, parts.codes)
        assert torch.equal(whole.grid.scale, parts.grid.scale)
        assert torch.equal(whole.grid.zero, parts.grid.zero)


@pytest.mark.parametrize("rows", [12, 1100])
def test_many_formats_at_once_are_each_what_it_is_alone(rows: int) -> None:
    weight, stats = layer(4, rows=rows)
    formats = [Format(2), Format(4, 8), Format(3), Format(3, 8), Format(4), Format(2), Format(8, "tensor")]
    together = AWQ().quantize_many([weight, weight.flip(0)], stats, formats)
    assert len(together) == len(formats)
    for form, solution in zip(formats, together, strict=True):
        alone = AWQ().quantize([weight, weight.flip(0)], stats, form)
        assert alone.notes == solution.notes
        for one, other in zip(alone.weights, solution.weights, strict=True):
            assert one.format == form
            assert torch.equal(one.input_scale, other.input_scale)
            assert torch.equal(one.codes, other.codes)
            assert torch.equal(one.grid.scale, other.grid.scale)


def test_the_scale_is_that_of_the_least_error_on_the_tokens_themselves() -> None:
    weight, stats, x = salient_layer(6)
    by_tokens = least_by([weight], stats, Format(3), lambda found: float((x @ (found[0] - weight).T).norm()))
    assert torch.equal(by_tokens.values, search_scale([weight], stats, [Format(3)])[0].values)
    untouched = least_by([weight], stats, Format(3), lambda found: float((found[0] - weight).norm()))
    assert untouched.exponent < by_tokens.exponent


def test_inputs_are_not_mutated_and_codes_fit() -> None:
    weight, stats, _ = salient_layer(3)
    before = weight.clone(), stats.gram.clone(), stats.mean_abs.clone()
    solved = AWQ().quantize([weight], stats, Format(2)).weights[0]
    assert torch.equal(weight, before[0])
    assert torch.equal(stats.gram, before[1])
    assert torch.equal(stats.mean_abs, before[2])
    assert int(solved.codes.max()) <= 3


def test_an_input_that_is_always_zero_is_no_trouble() -> None:
    weight, _, x = salient_layer(4)
    x[:, 5] = 0
    silent = LayerStats(x.T @ x / len(x), x.abs().mean(dim=0), len(x))
    for duo_scaling in (False, True):
        for form in (Format(3), Format(3, 8)):
            solved = AWQ(form.group_size, duo_scaling=duo_scaling).quantize([weight], silent, form).weights[0]
            assert torch.isfinite(solved.dequantize()).all()
            assert error(weight, solved, silent) <= error(weight, round_nearest(weight, form), silent) * (1 + 1e-5)


def test_inputs_that_are_all_zero_and_columns_without_weights_are_no_trouble() -> None:
    weight = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
    weight[:, 3] = 0
    for duo_scaling in (False, True):
        silent = LayerStats(torch.zeros(32, 32), torch.zeros(32), 5)
        solved = AWQ(duo_scaling=duo_scaling).quantize([weight], silent, Format(4)).weights[0]
        assert torch.equal(solved.dequantize(), round_nearest(weight, Format(4)).dequantize())
        one_token = torch.randn(1, 32, generator=torch.Generator().manual_seed(1)) * 1e4
        few = LayerStats(one_token.T @ one_token, one_token.abs()[0], 1)
        solved = AWQ(8, duo_scaling=duo_scaling).quantize([weight], few, Format(4, 8)).weights[0]
        assert error(weight, solved, few) <= error(weight, round_nearest(weight, Format(4, 8)), few) * (1 + 1e-5)
        assert torch.isfinite(solved.dequantize()).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_errors(value: float) -> None:
    weight, stats, x = salient_layer(7)
    broken = weight.clone()
    broken[2, 3] = value
    with pytest.raises(ValueError, match="weight has values that are not finite"):
        AWQ().quantize([weight, broken], stats, Format(4))
    x[4, 5] = value
    with pytest.raises(ValueError, match="Gram matrix of the calibration inputs has values that are not finite"):
        AWQ().quantize([weight], LayerStats(x.T @ x, x.abs().mean(dim=0), len(x)), Format(4))


def test_half_precision_weights_are_solved_as_their_values_in_single_precision() -> None:
    weight, stats, _ = salient_layer(8)
    half = weight.half()
    one, other = (AWQ().quantize([each], stats, Format(4)).weights[0] for each in (half, half.float()))
    assert torch.equal(one.codes, other.codes)
    assert one.grid.scale.dtype == torch.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_grid": 0}, "n_grid=0"),
        ({"clip_steps": -1}, "clip_steps=-1"),
        ({"max_shrink": 1.0}, "max_shrink=1.0"),
        ({"group_size": "rows"}, "group_size='rows'"),
    ],
)
def test_fields_that_cannot_be_are_errors(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AWQ(**fields)


def test_without_statistics_it_says_so() -> None:
    with pytest.raises(ValueError, match="AWQ needs the statistics"):
        AWQ().quantize([torch.ones(2, 4)], None, Format(4))


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_fused_scales_are_searched_only_where_they_fold(form: Format) -> None:
    weight, stats, _ = salient_layer(4)
    fused, plain = (AWQ(form.group_size, form.symmetric, fuse=fuse) for fuse in (True, False))
    (folding,) = fused.quantize([weight], replace(stats, foldable=True), form).weights
    (beside,) = plain.quantize([weight], stats, form).weights
    assert torch.equal(folding.codes, beside.codes)
    assert torch.equal(folding.input_scale, beside.input_scale)
    solution = fused.quantize([weight], stats, form)
    assert solution.weights[0].input_scale is None
    assert solution.notes["scale_exponent"] == 0
    clipped, rounded = error(weight, solution.weights[0], stats), error(weight, round_nearest(weight, form), stats)
    assert error(weight, beside, stats) < clipped <= rounded * (1 + 1e-5)
