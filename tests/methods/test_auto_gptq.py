from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.methods.auto_gptq import AutoGPTQ, codes_of, load, run
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.factor import factorize
from mmq_sweeps.methods.formats import Format, Grid, QuantizedWeight, fit_grid
from mmq_sweeps.methods.gptq import GPTQ, solve_many
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.targets import Part
from mmq_sweeps.tasks.caption import CaptionTask
from tests.methods.test_gptq import layer, output_error
from tests.methods.test_gptq import statistics as statistics_of

installed = pytest.mark.skipif(
    importlib.util.find_spec("auto_gptq") is None, reason="BUILD_CUDA_EXT=0 pip install auto-gptq==0.7.1"
)


@contextmanager
def in_double_precision() -> Iterator[None]:
    """Make the library's ``.float()``, with which it casts its inputs, cast to double precision instead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        yield


def linear(weight: Tensor) -> nn.Linear:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return module


def solved_by_both(
    weight: Tensor, gram: Tensor, form: Format, act_order: bool
) -> tuple[QuantizedWeight, QuantizedWeight]:
    """Solve by our method and by the library, on the library's own grids."""
    restored, scale, zero = run(linear(weight), 2 * gram, form, act_order=act_order)
    grid = Grid(scale, zero, form)
    ours = solve_many([weight], factorize(gram, act_order=act_order), [form], grids=[[grid]])[0][0]
    theirs = QuantizedWeight(codes_of(restored, grid), grid)
    assert torch.equal(theirs.dequantize(), restored)
    return ours, theirs


@installed
@pytest.mark.parametrize("act_order", [False, True], ids=["given_order", "act_order"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize(("bits", "group_size"), [(2, "channel"), (3, 32), (4, 128), (8, "channel")])
def test_gptq_equals_the_library(bits: int, group_size: int | str, symmetric: bool, act_order: bool) -> None:
    weight, stats = layer(bits, columns=256, rows=24, tokens=512)
    form = Format(bits, group_size, symmetric)
    with in_double_precision():
        ours, theirs = solved_by_both(weight.double(), stats.gram.double(), form, act_order)
        assert torch.equal(ours.codes, theirs.codes)
    ours, theirs = solved_by_both(weight, stats.gram, form, act_order)
    assert (ours.codes == theirs.codes).float().mean() >= 0.98
    errors = [output_error(weight, solved.dequantize(), stats) for solved in (ours, theirs)]
    assert errors[0] <= errors[1] * 1.001


@pytest.fixture(scope="module")
def embedded_layers(loaded: LoadedModel, parts: dict[str, Part]) -> list[tuple[Tensor, LayerStats]]:
    """Return the attention output and the MLP's second linear of each part's last block, with their calibration inputs."""
    data = {"_target_": "mmq_sweeps.data.scenes.Scenes", "seed": 0}
    task = CaptionTask("t", 1, data, "evaluation", "calibration", 4, "", {}, ["cider"], 4)
    names = [list(unit.linears)[-1] for part in parts.values() if not part.at_an_end for unit in part.units[-2:]]
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    with ExitStack() as hooks, torch.no_grad():
        for name in names:
            hook = partial(lambda rows, _module, inputs: rows.append(inputs[0].flatten(0, -2)), seen[name])
            hooks.callback(loaded.linear(name).register_forward_pre_hook(hook).remove)
        for batch in task.calibration_batches(loaded, {"samples": 16, "batch_size": 8, "seed": 0}):
            loaded.model(**loaded.to_device(batch), use_cache=False)
    return [(loaded.linear(name).weight.detach(), statistics_of(torch.cat(seen[name]))) for name in names]


@installed
@pytest.mark.parametrize(("bits", "group_size"), [(2, 32), (3, "channel"), (8, 128)])
def test_gptq_equals_the_library_on_the_embedded_model(
    embedded_layers: list[tuple[Tensor, LayerStats]], bits: int, group_size: int | str
) -> None:
    ratios = []
    for symmetric, act_order in product([False, True], repeat=2):
        form = Format(bits, group_size, symmetric)
        same = count = 0
        for weight, stats in embedded_layers:
            if isinstance(group_size, int) and weight.shape[1] % group_size:
                continue
            with in_double_precision():
                ours, theirs = solved_by_both(weight.double(), stats.gram.double(), form, act_order)
                assert torch.equal(ours.codes, theirs.codes)
            ours, theirs = solved_by_both(weight, stats.gram, form, act_order)
            same, count = same + int((ours.codes == theirs.codes).sum()), count + weight.numel()
            errors = [output_error(weight, solved.dequantize(), stats) for solved in (ours, theirs)]
            ratios.append(errors[0] / errors[1])
        assert same >= 0.98 * count
    # A weight halfway between two codes falls either way, as the machine rounds; in a layer this small that can be more than
    # a thousandth, up or down.
    assert statistics.median(ratios) <= 1.001


@installed
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", ["tensor", "channel", 8])
def test_its_grids_are_ours_but_for_the_rounding_of_scales(group_size: int | str, symmetric: bool) -> None:
    weight, stats = layer(0)
    form = Format(4, group_size, symmetric)
    _, scale, zero = run(linear(weight), stats.gram.clone(), form)
    ours = fit_grid(weight, form)
    rows = ours.scale.shape[0]
    assert torch.allclose(ours.scale, scale[:rows], rtol=2**-11, atol=0)
    assert torch.equal(ours.zero, zero[:rows])


@installed
@pytest.mark.parametrize("form", [Format(2), Format(3, 8), Format(4, 8, symmetric=True), Format(4, "tensor")], ids=str)
def test_the_method_gives_the_library_s_weight_with_scales_as_it_stores_them(form: Format) -> None:
    weight, stats = layer(1)
    restored, scale, _ = run(linear(weight), 2 * stats.gram, form)
    solved = AutoGPTQ(form.group_size, form.symmetric).quantize([weight], stats, form).weights[0]
    stored = scale.half().float() if form.group_size != "tensor" else scale
    again = QuantizedWeight(solved.codes, Grid(scale[: len(solved.grid.scale)], solved.grid.zero, form))
    assert torch.allclose(again.dequantize(), restored, rtol=1e-6)
    assert torch.equal(solved.grid.scale, stored[: len(solved.grid.scale)])
    unpacked = QuantizedWeight.unpack(solved.pack(), solved.shape, form)
    assert torch.equal(unpacked.dequantize(), solved.dequantize())


@installed
def test_the_gram_matrix_stands_for_the_library_s_own_sums() -> None:
    weight, _ = layer(2)
    batches = torch.randn(6, 1, 40, 32, generator=torch.Generator().manual_seed(0))
    solver = load()[0](linear(weight))
    for batch in batches:
        solver.add_batch(batch, None)
    x = batches.flatten(0, 2)
    # It divides by sequences, not by tokens.
    assert torch.allclose(solver.H, 2 * (x.T @ x / len(x)) * 40, rtol=1e-4, atol=1e-3)
    summed = run(linear(weight), solver.H, Format(3))[0]
    assert torch.equal(summed, run(linear(weight), 2 * statistics_of(x).gram, Format(3))[0])


@installed
def test_nothing_that_others_see_is_changed() -> None:
    weight, stats = layer(3)
    before = weight.clone(), stats.gram.clone()
    torch.backends.cudnn.allow_tf32, kept = True, torch.backends.cudnn.allow_tf32
    try:
        load.cache_clear()
        for name in [name for name in sys.modules if name.startswith("_mmq_sweeps_auto_gptq")]:
            del sys.modules[name]
        AutoGPTQ().quantize([weight], stats, Format(3))
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = kept
    assert torch.equal(weight, before[0])
    assert torch.equal(stats.gram, before[1])
    assert "auto_gptq" not in sys.modules


@installed
def test_dead_inputs_get_zero_and_are_noted() -> None:
    weight, _ = layer(4)
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    x[:, [3, 17]] = 0.0
    solution = AutoGPTQ().quantize([weight], statistics_of(x), Format(4))
    assert solution.notes == {"dead_inputs": 2}
    assert (solution.weights[0].dequantize()[:, [3, 17]] == 0).all()


@installed
def test_what_it_cannot_solve_is_an_error() -> None:
    weight, stats = layer(5)
    with pytest.raises(ValueError, match=r"auto-gptq's factorization failed with damping 0\.01"):
        AutoGPTQ().quantize([weight], LayerStats(-stats.gram, stats.mean_abs, 10), Format(3))
    with pytest.raises(ValueError, match="the Gram matrix of the calibration inputs has values that are not finite"):
        AutoGPTQ().quantize([weight], LayerStats(stats.gram / 0, stats.mean_abs, 10), Format(3))
    with pytest.raises(ValueError, match="needs the statistics"):
        AutoGPTQ().quantize([weight], None, Format(3))
    with pytest.raises(ValueError, match="group_size=5 does not divide 32 input columns"):
        AutoGPTQ(5).quantize([weight], stats, Format(3, 5))


@installed
def test_fields_that_cannot_be_are_errors() -> None:
    with pytest.raises(ValueError, match="static_groups=False with act_order=True and group_size=8"):
        AutoGPTQ(8, static_groups=False)
    with pytest.raises(ValueError, match="block_size=0"):
        AutoGPTQ(block_size=0)


@installed
def test_groups_fitted_on_the_way_depend_on_its_block_where_ours_do_not() -> None:
    weight, stats = layer(6, columns=64)
    form = Format(2, 8)
    theirs = [
        run(linear(weight), 2 * stats.gram, form, act_order=False, static_groups=False, block_size=size)[0]
        for size in (8, 64)
    ]
    assert not torch.equal(*theirs)
    ours = [
        GPTQ(8, act_order=False, static_groups=False, block_size=size).quantize([weight], stats, form).weights[0]
        for size in (8, 64)
    ]
    assert torch.equal(ours[0].codes, ours[1].codes)
    # With a block that is a whole group, the library's columns are corrected by all before them, as ours always are.
    errors = [output_error(weight, restored, stats) for restored in (ours[0].dequantize(), theirs[0])]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_without_the_library_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "auto_gptq" else find_spec(name))
    with pytest.raises(ConfigError, match=r"method: .*pip install 'mmq-sweeps\[auto-gptq\]'"):
        build("method", {"_target_": "mmq_sweeps.methods.auto_gptq.AutoGPTQ"})
