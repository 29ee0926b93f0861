from __future__ import annotations

import pytest
import torch

from mmq_sweeps.affine import Format, QuantizedWeight, round_nearest
from mmq_sweeps.methods.awq import AWQ, output_error, search_clip, search_scale
from mmq_sweeps.methods.base import LayerStats
from tests.methods.test_gptq import FORMATS, layer


def salient_layer(seed: int) -> tuple[torch.Tensor, LayerStats, torch.Tensor]:
    """A few input columns carry large activations, as in language models; also the inputs themselves."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 32, generator=generator)
    x[:, :3] *= 30
    weight = torch.randn(12, 32, generator=generator)
    return weight, LayerStats(x.T @ x / len(x), x.abs().mean(dim=0), len(x)), x


def error(weight: torch.Tensor, quantized: QuantizedWeight, stats: LayerStats) -> float:
    return float(output_error(weight - quantized.dequantize(), stats.gram).sum())


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_is_never_worse_than_rounding_on_its_own_gram_matrix(form: Format) -> None:
    for seed in range(4):
        weight, stats = layer(seed)
        # Without clipping: a clip that is chosen group by group ignores what the groups' errors do to each other.
        solved = AWQ(form.group_size, form.symmetric, clip_steps=0).quantize([weight], stats, form).weights[0]
        assert error(weight, solved, stats) <= error(weight, round_nearest(weight, form), stats) * (1 + 1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_wins_clearly_where_few_columns_carry_the_activations(bits: int) -> None:
    weight, stats, _ = salient_layer(0)
    solution = AWQ().quantize([weight], stats, Format(bits))
    assert solution.notes["scale_exponent"] > 0
    assert error(weight, solution.weights[0], stats) < 0.7 * error(weight, round_nearest(weight, Format(bits)), stats)


def test_the_loss_is_the_squared_output_error_over_all_tokens() -> None:
    weight, stats, x = salient_layer(1)
    difference = weight - round_nearest(weight, Format(3)).dequantize()
    assert torch.allclose(output_error(difference, stats.gram), (x @ difference.T).square().mean(dim=0), rtol=1e-4)


def test_linears_that_share_an_input_share_the_scale() -> None:
    weight, stats, _ = salient_layer(2)
    solved = AWQ().quantize([weight, weight.flip(0) * 2], stats, Format(3)).weights
    assert torch.equal(solved[0].input_scale, solved[1].input_scale)
    alone = search_scale([weight, weight.flip(0) * 2], stats, Format(3))[0]
    assert torch.equal(solved[0].input_scale.float(), alone)


def test_clipping_is_chosen_only_where_it_helps() -> None:
    weight = torch.full((1, 64), 0.1) * torch.linspace(-1, 1, 64)
    weight[0, 0] = 4.0
    gram = torch.eye(64)
    gram[0, 0] = 1e-6
    clipped = search_clip(weight, gram, Format(3), steps=10, max_shrink=0.9)
    assert clipped.scale.item() < 0.5 * search_clip(weight, torch.eye(64), Format(3), 1, 0.9).scale.item()
    even = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert search_clip(even, torch.eye(4), Format(2), 10, 0.5).scale.item() == 1.0


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
    assert torch.isfinite(AWQ().quantize([weight], silent, Format(3)).weights[0].dequantize()).all()


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
