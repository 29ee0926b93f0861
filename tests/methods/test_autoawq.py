"""autoawq's own solver through the adapter, and ours against it: the same choice, or a choice with a lower loss."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmq_sweeps.methods.autoawq import AutoAWQ, SharedInput, keep_copies, library_solver
from mmq_sweeps.methods.awq import AWQ
from mmq_sweeps.methods.awq_search.clip import quantize_clipped
from mmq_sweeps.methods.awq_search.errors import output_error
from mmq_sweeps.methods.awq_search.scales import search_scales
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.formats import Format, QuantizedWeight
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.targets import Part
from tests.commands import run_forked
from tests.conftest import command_environment
from tests.methods.test_awq import least_by, restored

pytestmark = pytest.mark.skipif(find_spec("awq") is None, reason="pip install -e '.[autoawq]'")


def layers(seed: int, columns: int = 64) -> tuple[list[Tensor], LayerStats]:
    """Return three weights that share a correlated input of few tokens, some channels of which are outliers."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + 0.3 * torch.eye(columns)
    x = torch.randn(300, columns, generator=generator) @ mixing
    x[:, : columns // 16] *= 20
    weights = [torch.randn(rows, columns, generator=generator) / columns**0.5 for rows in (64, 64, 40)]
    return weights, statistics(x)


def statistics(x: Tensor) -> LayerStats:
    return LayerStats(x.T @ x / len(x), x.abs().mean(dim=0), len(x), x)


def loss(weights: list[Tensor], solved: list[QuantizedWeight], stats: LayerStats) -> float:
    return sum(
        float(output_error(weight - one.dequantize(), stats.gram).sum())
        for weight, one in zip(weights, solved, strict=True)
    )


def compare(weights: list[Tensor], stats: LayerStats, form: Format) -> tuple[bool, float]:
    """Return whether both chose the same scale, and our loss over theirs."""
    theirs = AutoAWQ(form.group_size, form.symmetric).quantize(weights, stats, form).weights
    ours = AWQ(form.group_size, form.symmetric, duo_scaling=True).quantize(weights, stats, form).weights
    equal = torch.allclose(theirs[0].input_scale.float(), ours[0].input_scale.float(), rtol=2e-3)
    return equal, loss(weights, ours, stats) / loss(weights, theirs, stats)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize(
    ("bits", "group_size", "columns"), [(2, "channel", 256), (3, 32, 64), (4, 128, 256), (8, 32, 64)]
)
def test_no_higher_loss_on_any_random_layer(bits: int, group_size: int | str, columns: int, symmetric: bool) -> None:
    assert compare(*layers(bits, columns), Format(bits, group_size, symmetric))[1] <= 1


@pytest.mark.parametrize("form", [Format(2, 32), Format(3, 32), Format(3), Format(4)], ids=str)
def test_without_clipping_the_same_scale(form: Format) -> None:
    for seed in range(2):
        weights, stats = layers(seed)
        theirs = AutoAWQ(form.group_size, apply_clip=False).quantize(weights, stats, form).weights[0].input_scale
        ours = AWQ(form.group_size, clip_steps=0).quantize(weights, stats, form).weights[0].input_scale
        assert torch.allclose(theirs.float(), ours.float(), rtol=2e-3)
        # With clipping another may be better; the library's is looked at.
        carried = search_scales(weights, stats, [form])[0]
        assert any(torch.allclose(theirs.float(), scale.values, rtol=2e-3) for scale in carried)


@pytest.fixture(scope="module")
def attention(loaded: LoadedModel) -> nn.Module:
    """Return the attention module of the embedded model's first language block, an OPT."""
    return next(
        module
        for name, module in loaded.model.named_modules()
        if name.endswith("layers.0.self_attn") and hasattr(module, "q_proj")
    )


@pytest.fixture(scope="module")
def embedded(loaded: LoadedModel, parts: dict[str, Part]) -> list[tuple[str, list[Tensor], LayerStats]]:
    """Return linears that share an input, of every kind of unit, whose input columns differ in size."""
    units = [unit for part in parts.values() for unit in part.units[:2]]
    found = []
    for unit in units:
        weight = loaded.linear(next(iter(unit.linears))).weight.detach()
        found.append((unit.name, [weight], statistics(hidden_states(weight.shape[1]).flatten(0, 1))))
    return found


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 32), (3, "channel"), (4, 128)])
def test_no_higher_loss_on_any_layer_of_the_model(
    embedded: list[tuple[str, list[Tensor], LayerStats]], bits: int, group_size: int | str, symmetric: bool
) -> None:
    fitting = [
        (name, weights, stats)
        for name, weights, stats in embedded
        if not (isinstance(group_size, int) and len(stats.gram) % group_size)
    ]
    assert fitting or group_size == 128
    for name, weights, stats in fitting:
        assert compare(weights, stats, Format(bits, group_size, symmetric))[1] <= 1, name


def test_no_higher_loss_on_linears_that_share_an_input(attention: nn.Module) -> None:
    weights = [attention.get_submodule(name).weight.detach() for name in ("q_proj", "k_proj", "v_proj")]
    stats = statistics(hidden_states(weights[0].shape[1]).flatten(0, 1))
    for form in (Format(3, 32), Format(4)):
        assert compare(weights, stats, form)[1] <= 1


def hidden_states(columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 16, columns, generator=generator)
    return x * torch.exp(torch.randn(columns, generator=generator))


def llama_attention() -> tuple[nn.Module, dict[str, object]]:
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig, LlamaRotaryEmbedding

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, attn_implementation="eager")
    positions = LlamaRotaryEmbedding(config)(torch.zeros(4, 16, 64), torch.arange(16)[None])
    return LlamaAttention(config, 0).eval(), {"position_embeddings": positions, "attention_mask": None}


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_on_the_output_of_an_attention_module_the_choice_is_the_library_s(family: str, attention: nn.Module) -> None:
    import copy

    module, arguments = (copy.deepcopy(attention).float(), {}) if family == "opt" else llama_attention()
    linears = [module.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj")]
    weights = [linear.weight.detach().clone() for linear in linears]
    x = hidden_states(weights[0].shape[1])
    form = Format(3, weights[0].shape[1])
    module.register_state_dict_post_hook(keep_copies)
    with torch.no_grad():
        whole = module(x, **arguments)[0]

        def on_output(changed_to: list[Tensor]) -> float:
            for linear, weight in zip(linears, changed_to, strict=True):
                linear.weight.copy_(weight)
            changed = float((module(x, **arguments)[0] - whole).square().mean())
            for linear, weight in zip(linears, weights, strict=True):
                linear.weight.copy_(weight)
            return changed

        module.before = nn.Identity()
        solver = library_solver(form, x.shape[2], duo_scaling=True)
        theirs = solver._search_best_scale(module, module.before, linears, x, module, dict(arguments))[2]
        ours = least_by(weights, statistics(x.flatten(0, 1)), form, on_output).values
        if not torch.equal(ours, theirs.half().float()):
            assert on_output(restored(weights, ours, form)) <= on_output(restored(weights, theirs, form))


def test_clips_are_the_library_s_or_err_less_in_their_group() -> None:
    (weight, *_), stats = layers(3)
    assert stats.inputs is not None
    form, no_scale = Format(3, 32), torch.ones(64)
    limits = library_solver(form, 64, True)._compute_best_clip(weight, stats.inputs)[:, :, 0]
    ours = quantize_clipped(weight, no_scale, stats.gram, form, [1 - step / 20 for step in range(10)])[0]
    grouped = weight.reshape(64, 2, 32)
    cut = torch.maximum(torch.minimum(grouped, limits[:, :, None]), -limits[:, :, None]).reshape(weight.shape)
    theirs = AWQ(32, clip_steps=0, n_grid=1).quantize([cut], stats, form).weights[0]
    uncut = quantize_clipped(weight, no_scale, stats.gram, form, [1.0])[0]
    # A row that its cuts would harm in all is left uncut, which the library does not look at.
    cut_rows = (ours.grid.scale != uncut.grid.scale).any(dim=1)
    assert cut_rows.double().mean() > 0.5
    assert (ours.grid.scale == theirs.grid.scale)[cut_rows].double().mean() > 0.7

    def by_group(solved: QuantizedWeight) -> Tensor:
        parts = (weight - solved.dequantize()).reshape(64, 2, 32)
        blocks = torch.stack([stats.gram[i : i + 32, i : i + 32] for i in (0, 32)])
        return torch.einsum("ogi,gij,ogj->og", parts, blocks, parts)[cut_rows]

    assert (by_group(ours) <= by_group(theirs) * (1 + 1e-4)).all()


def test_without_copies_the_library_searches_on_weights_that_it_has_already_rounded() -> None:
    weights, stats = layers(4)
    module = SharedInput(weights)
    module._state_dict_hooks.clear()
    solver = library_solver(Format(2, 32), 64, True)
    solver._search_best_scale(module, module.before, list(module.linears), stats.inputs, module)
    assert not torch.equal(module.linears[0].weight, weights[0])
    kept = SharedInput(weights)
    solver._search_best_scale(kept, kept.before, list(kept.linears), stats.inputs, kept)
    assert all(torch.equal(linear.weight, weight) for linear, weight in zip(kept.linears, weights, strict=True))


def test_the_adapter_gives_back_what_the_library_rounds_to() -> None:
    weights, stats = layers(5)
    for form in (Format(3, 32), Format(4, 32, symmetric=True), Format(2)):
        solved = AutoAWQ(form.group_size, form.symmetric, apply_clip=False).quantize(weights, stats, form).weights
        for weight, one in zip(weights, solved, strict=True):
            scaled = (weight * one.input_scale.float()).half()
            rounded, scale, _ = library_solver(form, 64, True).pseudo_quantize_tensor(scaled)
            assert torch.equal(one.grid.scale, scale.float())
            unscaled = QuantizedWeight(one.codes, one.grid).dequantize()
            assert torch.equal(unscaled.half(), rounded)
            assert one.unpack(one.pack(), one.shape, form).dequantize().equal(one.dequantize())


def test_inputs_are_not_mutated_and_rows_need_not_fill_the_library_s_batches() -> None:
    weights, stats = layers(6)
    assert stats.inputs is not None
    before = [weight.clone() for weight in weights], stats.inputs.clone()
    solved = AutoAWQ(32).quantize(weights, stats, Format(4, 32)).weights
    assert [one.shape for one in solved] == [(64, 64), (64, 64), (40, 64)]
    assert all(torch.equal(weight, kept) for weight, kept in zip(weights, before[0], strict=True))
    assert torch.equal(stats.inputs, before[1])


def test_importing_the_library_changes_no_warning_filter_and_says_nothing(tmp_path: Path) -> None:
    program = (
        "import warnings; from mmq_sweeps.methods.formats import Format\n"
        "from mmq_sweeps.methods.autoawq import library_solver\n"
        "import sys, torch; warnings.simplefilter('error'); before = list(warnings.filters); assert 'awq' not in sys.modules\n"
        "library_solver(Format(4), 8, True); assert warnings.filters == before and 'awq' in sys.modules"
    )
    done = run_forked("-c", [program], tmp_path, command_environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_it_cannot_do_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"group_size='tensor': autoawq .* choose channel or a number"):
        AutoAWQ("tensor")
    weights, stats = layers(0)
    with pytest.raises(ValueError, match="autoawq needs the calibration inputs themselves"):
        AutoAWQ().quantize(weights, LayerStats(stats.gram, stats.mean_abs, stats.count), Format(4))
    monkeypatch.setitem(sys.modules, "awq", None)
    with pytest.raises(ValueError, match=r"pip install 'mmq-sweeps\[autoawq\]'"):
        AutoAWQ()
