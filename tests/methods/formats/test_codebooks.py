"""K-means codebooks and normal floats: against the optimum, scikit-learn, bitsandbytes and GPTQ."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor

from mmq_sweeps.methods.base import LayerStats, Method, quantize_many
from mmq_sweeps.methods.factor import factorize
from mmq_sweeps.methods.formats import DTYPES, NORMAL_FLOAT, ROWS, Format, QuantizedWeight, codebooks, round_nearest
from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.methods.kmeans import KMeans, round_corrected
from mmq_sweeps.methods.normal_float import NormalFloat

BOTH = [KMeans(), KMeans(corrected=True), NormalFloat(16)]


def layer(rows: int = 24, columns: int = 64, seed: int = 0) -> tuple[Tensor, LayerStats]:
    """Make a heavy-tailed weight on correlated inputs of unlike size."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(500, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    x = x * torch.logspace(-1, 1, columns)
    weight = torch.randn(rows, columns, generator=generator)
    weight = 0.02 * weight * (1 + weight.abs())
    return weight, LayerStats(x.T @ x / len(x), x.abs().mean(dim=0), len(x), x)


def solved(method: Method, bits: int, dtype: str = "float32") -> tuple[Tensor, LayerStats, QuantizedWeight]:
    weight, stats = layer()
    weight = weight.to(DTYPES[dtype]).float()
    form = replace(method.format(bits), dtype=dtype)
    return weight, stats, method.quantize([weight], stats, form).weights[0]


def output_error(weight: Tensor, quantized: QuantizedWeight, stats: LayerStats) -> float:
    change = quantized.dequantize() - weight
    return float(((change @ stats.gram) * change).sum())


def inertia(weight: Tensor, importance: Tensor, values: Tensor) -> Tensor:
    """Return the weighted squared distance of each row's weights to the nearest of its values."""
    distance = (weight.double()[:, :, None] - values[:, None, :]).square().amin(dim=2)
    return (distance * importance.double()).sum(dim=1)


def least_inertia(weight: np.ndarray, importance: np.ndarray, count: int) -> float:
    """Return the optimum of a row, by dynamic programming over all runs of its sorted weights."""
    order = np.argsort(weight)
    x, d = weight[order].astype(float), importance[order].astype(float)
    sums = [np.concatenate([[0], np.cumsum(d * x**power)]) for power in range(3)]
    stop, start = np.meshgrid(range(len(x) + 1), range(len(x) + 1))
    mass, first, second = (own[stop] - own[start] for own in sums)
    cost = np.where(stop > start, second - first**2 / np.where(stop > start, mass, 1), np.inf)
    least = cost[0]
    for _ in range(count - 1):
        least = (least[:, None] + cost).min(axis=0)
    return float(least[-1])


@pytest.mark.parametrize(("columns", "most"), [(64, 1 + 1e-9), (320, 1.01)])
@pytest.mark.parametrize("count", [4, 8, 16])
def test_no_values_are_far_from_the_best_there_are(count: int, columns: int, most: float) -> None:
    weight, stats = layer(12, columns)
    importance = stats.gram.diagonal()
    (values,) = codebooks.fit(weight, importance, [count])
    found = inertia(weight, importance, values)
    best = torch.tensor([least_inertia(row.numpy(), importance.numpy(), count) for row in weight], dtype=torch.float64)
    assert (found >= best * (1 - 1e-9)).all()
    assert float(found.sum() / best.sum()) <= most


@pytest.mark.parametrize("count", [8, 16])
def test_the_inertia_is_at_most_that_of_scikit_learn(count: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster", reason="pip install -e '.[analysis]'")
    weight, stats = layer(8, 320)
    importance = stats.gram.diagonal()
    (values,) = codebooks.fit(weight, importance, [count])
    theirs = [
        cluster.KMeans(count, n_init=1, random_state=0).fit(row[:, None].numpy(), sample_weight=importance.numpy())
        for row in weight
    ]
    ours = inertia(weight, importance, values).sum()
    assert float(ours) <= 1.01 * sum(one.inertia_ for one in theirs)


def test_values_do_not_depend_on_the_widths_asked_for_together() -> None:
    weight, stats = layer()
    formats = [KMeans().format(bits) for bits in (2, 3, 4)]
    together = quantize_many(KMeans(corrected=True), [weight, weight * 2], stats, formats)
    for form, solution in zip(formats, together, strict=True):
        alone = KMeans(corrected=True).quantize([weight, weight * 2], stats, form)
        for one, other in zip(solution.weights, alone.weights, strict=True):
            assert torch.equal(one.codes, other.codes)
            assert torch.equal(one.dequantize(), other.dequantize())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_each_method_lowers_the_output_error_of_the_one_before(bits: int) -> None:
    weight, stats, rounded = solved(KMeans(), bits)
    even = round_nearest(weight, Format(bits))
    corrected = KMeans(corrected=True).quantize([weight], stats, KMeans().format(bits)).weights[0]
    gptq = GPTQ().quantize([weight], stats, GPTQ().format(bits)).weights[0]
    errors = [output_error(weight, one, stats) for one in (corrected, rounded, even)]
    assert errors == sorted(errors)
    assert errors[0] < output_error(weight, gptq, stats)


def test_the_correction_is_gptqs() -> None:
    """With evenly spaced values the codes are GPTQ's own."""
    weight, stats = layer()
    gptq = GPTQ().quantize([weight], stats, Format(3)).weights[0]
    steps = torch.arange(8) - gptq.grid.zero
    grid = replace(gptq.grid, values=steps.float(), format=KMeans().format(3))
    codes = round_corrected(weight, grid, factorize(stats.gram))
    assert float((codes == gptq.codes).float().mean()) > 0.99


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", BOTH, ids=repr)
def test_what_is_stored_is_what_was_measured(method: Method, dtype: str) -> None:
    for bits in (2, 3, 4):
        _, _, quantized = solved(method, bits, dtype)
        stored = quantized.pack()
        form = quantized.format
        assert form.stored_bits(quantized.shape, exponents=quantized.exponents) == 8 * sum(
            tensor.nbytes for tensor in stored.values()
        )
        back = QuantizedWeight.unpack(stored, quantized.shape, form)
        assert torch.equal(back.dequantize(), quantized.dequantize())


def test_codebooks_cost_what_they_take() -> None:
    rows, columns = 24, 64
    plain = rows * columns * 4 + rows * 16
    assert KMeans().format(4).stored_bits((rows, columns)) == plain + rows * 16 * 16
    assert NormalFloat("channel").format(4).stored_bits((rows, columns)) == plain
    assert NormalFloat(16).format(4).stored_bits((rows, columns)) == plain + rows * 3 * 16


def test_normal_floats_are_those_of_bitsandbytes() -> None:
    if find_spec("bitsandbytes") is None:
        pytest.skip("pip install bitsandbytes==0.50.2")
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    # The largest magnitude of each group is a half, as our scales are.
    weight.reshape(-1, 64)[:, 0] = 4.0
    packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).reshape(weight.shape)
    ours = NormalFloat(64).quantize([weight], None, NormalFloat(64).format(4)).weights[0]
    assert torch.equal(ours.codes, codes)
    assert torch.allclose(codebooks.normal_float(4), state.code, atol=2e-7)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_normal_float_is_ascending_with_a_zero_and_both_ends(bits: int) -> None:
    values = codebooks.normal_float(bits)
    assert len(values) == 2**bits
    assert (values.diff() > 0).all()
    assert values[0] == -1
    assert values[-1] == 1
    assert values[2 ** (bits - 1) - 1] == 0


@pytest.mark.parametrize("method", BOTH, ids=repr)
def test_constant_rows_and_zeros_stay_what_they_are(method: Method) -> None:
    weight = torch.full((3, 16), 0.25)
    weight[1], weight[2] = 0.0, -300.0
    stats = LayerStats(torch.zeros(16, 16), torch.zeros(16), 4)
    quantized = method.quantize([weight], stats, method.format(2)).weights[0]
    assert torch.allclose(quantized.dequantize(), weight, rtol=1e-3)


@pytest.mark.parametrize("method", BOTH, ids=repr)
def test_a_weight_that_is_not_finite_is_refused(method: Method) -> None:
    weight, stats = layer()
    weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        method.quantize([weight], stats, method.format(2))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"bits": 8, "codebook": NORMAL_FLOAT}, "normal_float has 2 to 4 bits"),
        ({"bits": 4, "codebook": "lattice"}, "choose rows, normal_float"),
        ({"bits": 4, "codebook": ROWS, "group_size": 64}, "choose channel"),
        ({"bits": 4, "codebook": ROWS, "symmetric": True}, "no zero point"),
    ],
)
def test_formats_that_no_codebook_has_are_refused(fields: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Format(**fields)  # type: ignore[arg-type]
