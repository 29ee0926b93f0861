"""Input scales are folded into the layer before if nothing else of the model changes by it, and nowhere else."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.func import functional_call

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.execution.run_cell import run_cell
from mmq_sweeps.execution.session import Session, Sessions
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.methods.awq import AWQ
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.formats import Format
from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.quantization import folding, quantize
from mmq_sweeps.quantization.calibration import block_statistics, capture
from mmq_sweeps.quantization.folding import Fold, FoldedScales, find_folds
from mmq_sweeps.quantization.size import StoredLinear, measure, measure_stored
from mmq_sweeps.quantization.solve import solve_unit
from mmq_sweeps.quantization.stored_units import QuantizedWeights
from mmq_sweeps.quantization.targets import Part, find_parts
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.store import Store
from tests.conftest import SMALL
from tests.models.toys import awake, toy_batch, toy_model

Composed = Callable[..., DictConfig]
AWQ_CELL = (
    "method=awq",
    "bits=3",
    "component=all",
    "task.limit=8",
    "calibration.samples=8",
    "calibration.batch_size=4",
)
# Few scales are tried, where it does not matter which is best.
QUICK = ("method.n_grid=4", "method.clip_steps=2")
# Linears that share an input, by the ends of their names, under the module that their scale is folded into.
VISION = {"layer_norm1": ["qkv"], "qkv 64": ["projection"], "layer_norm2": ["fc1"], "nowhere": ["fc2"]}
QFORMER = {
    "attention.attention.value 0": ["attention.output.dense"],
    "crossattention.attention.value 0": ["crossattention.output.dense"],
    "nowhere": [
        "attention.attention.query", "attention.attention.key", "attention.attention.value",
        "crossattention.attention.query", "crossattention.attention.key", "crossattention.attention.value",
        "intermediate_query.dense", "output_query.dense",
    ],
}  # fmt: skip
OPT = {
    "self_attn_layer_norm": ["q_proj", "k_proj", "v_proj"],
    "v_proj 0": ["out_proj"],
    "final_layer_norm": ["fc1"],
    "fc1 0": ["fc2"],  # Past a ReLU, which a positive factor passes.
}
CLIP = {
    "layer_norm1": ["q_proj", "k_proj", "v_proj"], "v_proj 0": ["out_proj"], "layer_norm2": ["fc1"], "nowhere": ["fc2"],
}  # fmt: skip
# Two heads share a value, so that their scales would have to be equal.
GROUPED_LLAMA = {
    "input_layernorm": ["q_proj", "k_proj", "v_proj"],
    "post_attention_layernorm": ["gate_proj", "up_proj"],
    "up_proj 0": ["down_proj"],
    "nowhere": ["o_proj"],
}
# A norm whose weight is 1 plus its parameter is not divided with it.
GEMMA = {
    "up_proj 0": ["down_proj"],
    "nowhere": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"],
}  # fmt: skip
EXPECTED = {
    ("blip2_opt_2_7b", "vision"): VISION,
    ("blip2_opt_2_7b", "connector"): QFORMER,
    ("blip2_opt_2_7b", "language"): OPT,
    ("llava_1_5_7b", "vision"): CLIP,
    ("llava_1_5_7b", "language"): GROUPED_LLAMA,
    ("paligemma2_3b", "language"): GEMMA,
}


def found_folds(loaded: LoadedModel, part: Part, batch: dict[str, Tensor], block: int = 0) -> dict[str, list[str]]:
    """Group the linears of a block, by the ends of their names, under the module that their input's scale is folded into."""
    passes = capture(loaded, [part], [batch])[part.name]
    names = [name for unit in part.units if unit.block == block for name in unit.linears]
    ((_, stats),) = block_statistics(loaded, part, passes, names)
    ends: dict[str, list[str]] = {}
    for shared in stats:
        fold = shared.fold
        where = "nowhere" if fold is None else f"{fold.source} {'' if fold.start is None else fold.start}".strip()
        ends.setdefault(where.removeprefix(f"{part.blocks[block]}."), []).extend(
            name.removeprefix(f"{part.blocks[block]}.") for name in shared.linears
        )
    return ends


@pytest.fixture(scope="module")
def toys() -> dict[str, Any]:
    torch.manual_seed(0)
    found = {}
    for name in dict.fromkeys(name for name, _ in EXPECTED):
        loaded = toy_model(name)
        awake(loaded.model)
        found[name] = (loaded, toy_batch(name))
    return found


@pytest.mark.parametrize(("name", "part"), EXPECTED)
def test_scales_fold_where_nothing_else_changes(toys: dict[str, Any], name: str, part: str) -> None:
    loaded, batch = toys[name]
    found = found_folds(loaded, find_parts(loaded.model, loaded.config)[part], batch)
    expected = EXPECTED[name, part]
    assert len(found) == len(expected)
    for where, linears in expected.items():
        (own,) = [own for source, own in found.items() if source == where or source.endswith(f".{where}")]
        assert len(own) == len(linears)
        assert all(any(name.endswith(end) for name in own) for end in linears)


def folds_of(loaded: LoadedModel, batch: dict[str, Tensor]) -> list[Fold]:
    parts = [part for part in find_parts(loaded.model, loaded.config).values() if not part.at_an_end]
    passes = capture(loaded, parts, [batch])
    return [
        shared.fold
        for part in parts
        for _, stats in block_statistics(loaded, part, passes[part.name], [n for u in part.units for n in u.linears])
        for shared in stats
        if shared.fold is not None
    ]


def outputs(loaded: LoadedModel, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return loaded.model(**batch, use_cache=False).logits.double()


@pytest.mark.parametrize("name", ["blip2_opt_2_7b", "llava_1_5_7b"])
def test_a_model_with_scales_folded_is_the_model(toys: dict[str, Any], name: str) -> None:
    loaded, batch = toys[name]
    folds, full = folds_of(loaded, batch), outputs(loaded, batch)
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for exact in (True, False):
        weights: dict[str, Tensor] = {}
        scales = FoldedScales(loaded)
        for fold in folds:
            columns = loaded.linear(fold.linears[0]).weight.shape[1]
            exponents = 2 * torch.rand(columns, generator=generator) - 1
            scale = 2.0 ** (exponents.sign() if exact else exponents)
            scales.fold(fold, scale)
            weights |= {linear: weights.get(linear, loaded.weight(linear)) * scale for linear in fold.linears}
        for linear, divisor in scales.rows.items():
            weights[linear] = weights.get(linear, loaded.weight(linear)) / divisor[:, None]
        with loaded.weights_replaced(weights, scales.dense):
            assert not torch.equal(loaded.weight(folds[0].linears[0]), before[f"{folds[0].linears[0]}.weight"])
            folded = outputs(loaded, batch)
        error = float((folded - full).norm() / full.norm())
        assert error == 0 if exact else error < 1e-4
    after = loaded.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


class Block(nn.Module):
    """A norm and two linears on it; ``more`` reads the norm as well."""

    def __init__(self, more: bool) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.more = more

    def forward(self, hidden: Tensor) -> Tensor:
        x = self.norm(hidden)
        return self.one(x) + self.two(x) + (x if self.more else hidden)


class Tower(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block


def folds_in(model: nn.Module, *units: list[str]) -> list[Fold]:
    hidden = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    return find_folds(model, "block", [lambda: ((hidden.clone(),), {})], units)


def test_every_reader_of_a_norm_must_be_scaled() -> None:
    torch.manual_seed(0)
    both = ["block.one", "block.two"]
    assert folds_in(Tower(Block(False)), both) == [Fold(tuple(both), "block.norm")]
    assert folds_in(Tower(Block(True)), both) == []
    assert folds_in(Tower(Block(False)), both[:1], both[1:]) == []


def test_a_norm_that_lies_at_two_places_takes_no_scale() -> None:
    torch.manual_seed(0)
    tower = Tower(Block(False))
    tower.other = tower.block.norm
    assert folds_in(tower, ["block.one", "block.two"]) == []
    tower.other = nn.LayerNorm(8)
    tower.other.weight = tower.block.norm.weight
    assert folds_in(tower, ["block.one", "block.two"]) == []


def test_half_precision_is_no_obstacle() -> None:
    torch.manual_seed(0)
    tower = Tower(Block(False).half())
    tower.block.norm.weight.data.mul_(2.0**-14)  # Whose halves of them are subnormal.
    hidden = torch.randn(5, 8).half()
    found = find_folds(tower, "block", [lambda: ((hidden,), {})], [["block.one", "block.two"]])
    assert [fold.source for fold in found] == ["block.norm"]


def test_a_block_that_cannot_run_again_gets_no_scale_and_says_so(
    toys: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, batch = toys["llava_1_5_7b"]

    def refused(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(folding, "functional_call", refused)
    with caplog.at_level(logging.WARNING):
        found = found_folds(loaded, find_parts(loaded.model, loaded.config)["language"], batch)
    assert found.keys() == {"nowhere"}
    assert "layers.0: cannot be run again to fold input scales, so its linears get none: shapes differ" in caplog.text


def test_tokens_that_look_like_a_batch_are_taken_whole(toys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """If an item alone cannot run, the whole batch does."""
    loaded, batch = toys["llava_1_5_7b"]
    part = find_parts(loaded.model, loaded.config)["language"]
    expected, ran = found_folds(loaded, part, batch), []

    def of_batches_only(block: nn.Module, parameters: Any, args: Any, kwargs: Any) -> Any:
        ran.append(len(args[0]))
        if ran[-1] == 1:
            raise RuntimeError("shapes differ")
        return functional_call(block, parameters, args, kwargs)

    monkeypatch.setattr(folding, "functional_call", of_batches_only)
    assert found_folds(loaded, part, batch) == expected
    assert ran[:2] == [1, 2]


def test_a_fold_beyond_the_dtype_is_an_error_that_names_the_norm() -> None:
    tower = Tower(Block(False).half())
    loaded = LoadedModel(tower, None, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"block.norm.weight: .* exceeds torch.float16; choose method.fuse=false"):
        FoldedScales(loaded).fold(Fold(("block.one",), "block.norm"), torch.full((8,), 2.0**-14 / 8))


def test_a_scale_for_a_whole_weight_folds_into_norms_only(toys: dict[str, Any]) -> None:
    loaded, batch = toys["blip2_opt_2_7b"]
    part = find_parts(loaded.model, loaded.config)["language"]
    passes = capture(loaded, [part], [batch])["language"]
    unit = next(unit for unit in part.units if unit.kind == "mlp" and unit.block == 0)
    ((_, stats),) = block_statistics(loaded, part, passes, list(unit.linears))
    for size, folded in (("tensor", {"final_layer_norm"}), ("channel", {"final_layer_norm", "fc1"})):
        packed = solve_unit(unit, AWQ(size, fuse=True), [Format(3, size)], loaded, stats).packed[0]
        notes = [note["folded_into"] for note in packed.notes.values() if "folded_into" in note]
        assert {source.rpartition(".")[2] for source in notes} == folded
        # Errors of the weights as the model computes them, not of weights with other columns and rows.
        assert 0 < packed.error["weight_error"] < 0.15
        assert 0 < packed.error["output_error"] < 0.15


# In cells


def session(composed: Composed, store: Path, *overrides: str) -> tuple[Session, Cell]:
    sweep = plan([composed(*SMALL, *AWQ_CELL, *overrides, f"store.dir={store}")])
    cell = sweep.cells[-1]
    with quiet_libraries():
        return Sessions(sweep, Store.open(store)).open(cell), cell


def quantized(
    composed: Composed, loaded: LoadedModel, parts: dict[str, Part], store: Path, *more: str
) -> QuantizedWeights:
    sweep = plan([composed(*SMALL, *AWQ_CELL, *more)])
    own = Session(loaded, parts, build("task", sweep.configs[sweep.cells[-1].id]["task"]), 8, Store.open(store))
    return own.quantize(sweep.cells[-1], Progress(1))


def test_a_fused_cell_stores_no_input_scale(
    composed: Composed, loaded: LoadedModel, parts: dict[str, Part], tmp_path: Path
) -> None:
    found = quantized(composed, loaded, parts, tmp_path, *QUICK)
    assert all(weight.input_scale is None for weight in found.weights.values())
    sizes = measure(loaded.model, parts.values(), found.weights)
    before_solving = {name: StoredLinear(weight.format, weight.shape) for name, weight in found.weights.items()}
    assert sizes == measure_stored(loaded.model, parts.values(), before_solving)
    own = dict(loaded.model.named_parameters())
    assert all(value.dtype == own[name].dtype and value.shape == own[name].shape for name, value in found.dense.items())
    assert any(name.endswith("layer_norm1.weight") for name in found.dense)
    assert any(name.endswith("v_proj.bias") for name in found.dense)


def test_what_is_folded_is_what_would_be_stored_beside_the_codes(
    composed: Composed, loaded: LoadedModel, parts: dict[str, Part], tmp_path: Path
) -> None:
    """``fc1`` of the ViT is folded into a norm, and nothing is folded into ``fc1``."""
    fused, beside = (
        quantized(composed, loaded, parts, tmp_path, *QUICK, "component=vision", f"method.fuse={fuse}")
        for fuse in ("true", "false")
    )
    assert not beside.dense
    for name, weight in fused.weights.items():
        if name.endswith("fc1"):
            other = beside.weights[name]
            assert torch.equal(weight.codes, other.codes)
            assert torch.equal(weight.grid.scale, other.grid.scale)
            norm = name.replace("mlp.fc1", "layer_norm2")
            divided = loaded.model.get_parameter(f"{norm}.weight") / other.input_scale.float()
            assert torch.equal(fused.dense.get(f"{norm}.weight", loaded.model.get_parameter(f"{norm}.weight")), divided)


def test_stored_statistics_fold_alike(
    composed: Composed, loaded: LoadedModel, parts: dict[str, Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = quantized(composed, loaded, parts, tmp_path / "alone", *QUICK)
    quantized(composed, loaded, parts, tmp_path / "shared", "method=gptq")
    monkeypatch.setattr(quantize, "capture", None)  # No second pass over the calibration data.
    shared = quantized(composed, loaded, parts, tmp_path / "shared", *QUICK)
    assert shared.dense.keys() == alone.dense.keys()
    assert all(torch.equal(shared.dense[name], alone.dense[name]) for name in alone.dense)
    for name, weight in alone.weights.items():
        assert torch.equal(weight.codes, shared.weights[name].codes)


@pytest.mark.parametrize("device_map", ["null", "disk"])
def test_norms_and_biases_are_swapped_with_the_codes_and_back(
    composed: Composed, tmp_path: Path, device_map: str
) -> None:
    own, cell = session(composed, tmp_path, *QUICK, f"model.device_map={device_map}")

    def values() -> dict[str, Tensor]:
        found = {}
        for name, _ in own.loaded.model.named_parameters():
            with own.loaded.onloaded(name.rpartition(".")[0]):
                found[name] = own.loaded.model.get_parameter(name).clone()
        return found

    before = values()
    found = own.quantize(cell, Progress(1))
    assert found.dense
    with own.evaluating(cell, found, replay=False):
        inside = values()
    for name, value in found.dense.items():
        assert torch.equal(inside[name], value)
        assert not torch.equal(before[name], value)
    untouched = before.keys() - found.dense.keys() - {f"{name}.weight" for name in found.weights}
    assert all(torch.equal(inside[name], before[name]) for name in untouched)
    own.weights.restore()
    after = values()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_fused_cell_is_measured_alike_alone_and_among_others(composed: Composed, tmp_path: Path) -> None:
    """Covers cached outputs of a part, norms that run before the first linear, and weights of the cell before."""
    runs = [("component.vision.bits=2",), ("component.vision.bits=16",), ("component.connector.bits=16",), ()]
    sweep = plan([composed(*SMALL, *AWQ_CELL, *QUICK, *run, f"store.dir={tmp_path}/all") for run in runs])
    store = Store.open(tmp_path / "all")
    with quiet_libraries():
        sessions = Sessions(sweep, store)
        together = {
            cell.id: run_cell(cell, sessions.open(cell), Progress(1))[1] for cell in [*sweep.cells, *sweep.cells]
        }
        for cell in sweep.cells:
            fresh = Sessions(replace(sweep, cells=[cell]), store)
            assert run_cell(cell, fresh.open(cell), Progress(1))[1] == together[cell.id]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_folds_and_answers(composed: Composed, model_config: dict, tmp_path: Path, dtype: str) -> None:
    with quiet_libraries():
        loaded = load_model({**model_config, "dtype": dtype})
    parts = find_parts(loaded.model, model_config)
    found = quantized(
        composed, loaded, parts, tmp_path, f"model.dtype={dtype}", *QUICK, "bits=4", "component=vision_language"
    )
    assert {value.dtype for value in found.dense.values()} == {getattr(torch, dtype)}
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))

    def seen() -> Tensor:
        with torch.no_grad():
            return loaded.model.vision_model(images).last_hidden_state.double()

    full = seen()
    vision = {name: weight.dequantize() for name, weight in found.weights.items() if parts["vision"].holds(name)}
    dense = {name: value for name, value in found.dense.items() if parts["vision"].holds(name)}
    with loaded.weights_replaced(vision, dense):
        error = (seen() - full).norm() / full.norm()
    assert 0 < error < 0.15


def test_units_are_calibrated_behind_folded_scales(
    composed: Composed, loaded: LoadedModel, parts: dict[str, Part], tmp_path: Path
) -> None:
    """In sequential GPTQ, the MLP of a block sees the norm that the attention's scale is folded into."""
    chained = {"bits": 3, "layers": ["mlp"], "method": {"name": "gptq", "sequential": True}}
    file = tmp_path / "mixed.json"
    file.write_text(json.dumps({"parts": {"vision": [{"bits": 3, "layers": ["attention"], "method": "awq"}, chained]}}))
    sweep = plan([composed(*SMALL, f"assignment={file}")])
    cell = sweep.cells[-1]
    task = build("task", sweep.configs[cell.id]["task"])
    own = Session(loaded, parts, task, 8, Store.open(tmp_path / "store"))
    found = own.quantize(cell, Progress(1))
    first = {name: weight.dequantize() for name, weight in found.weights.items() if ".layers.0.self_attn." in name}
    dense = {name: value for name, value in found.dense.items() if ".layers.0." in name}
    assert any(name.endswith("layer_norm1.weight") for name in dense)
    name = next(name for name in found.weights if name.endswith("layers.0.mlp.fc1"))
    seen: list[Tensor] = []
    with loaded.weights_replaced(first, dense), torch.no_grad():
        handle = loaded.linear(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for batch in task.calibration_batches(loaded, {**(cell.calibration or {}), "batch_size": 8}):
            loaded.model(**loaded.to_device(batch), use_cache=False)
        handle.remove()
    x = torch.cat([one.reshape(-1, one.shape[-1]) for one in seen]).double()
    stats = LayerStats((x.T @ x / len(x)).float(), x.abs().mean(dim=0).float(), len(x))
    expected = GPTQ().quantize([loaded.weight(name)], stats, Format(3)).weights[0].dequantize()
    assert ((expected - found.weights[name].dequantize()).abs() < 1e-6).float().mean() > 0.999
