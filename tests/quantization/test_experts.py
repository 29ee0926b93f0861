"""Experts in a single tensor are found, calibrated, solved and put in place as if each were linears."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor, nn

from mmq_sweeps.methods.awq import AWQ
from mmq_sweeps.methods.formats import Format, QuantizedWeight, round_nearest
from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.methods.kmeans import KMeans
from mmq_sweeps.methods.rtn import RoundToNearest
from mmq_sweeps.models import experts
from mmq_sweeps.models.device_map import locations
from mmq_sweeps.quantization import statistics
from mmq_sweeps.quantization.calibration import SharedStats, block_statistics, capture
from mmq_sweeps.quantization.quantize import quantize_units
from mmq_sweeps.quantization.requests import Request
from mmq_sweeps.quantization.size import StoredLinear, measure_stored
from mmq_sweeps.quantization.solve import solve_unit
from mmq_sweeps.quantization.stored_units import Dequantized, load
from mmq_sweeps.quantization.targets import Part, Unit, find_parts
from mmq_sweeps.store.store import Store
from tests.models.other_toys import TEXT_TOKENS, Toy, make

NAMES = ("qwen3_vl_moe", "llama4")
ALL = {"blocks": ["front", "middle", "end"], "layers": ["mlp"]}


def unit_of(toy: Toy) -> tuple[Part, Unit]:
    """Return the language part and the first of its units with experts."""
    language = find_parts(toy.loaded.model, {"parts": toy.parts})["language"]
    return language, next(unit for unit in language.select(ALL) if any(map(experts.parse, unit.linears)))


def slices(unit: Unit) -> list[str]:
    return [name for name in unit.linears if experts.parse(name)]


def never_choose_the_last(toy: Toy) -> None:
    """Set the router's logits to a, a, -a, -a and 0, so that the last is never among the highest two."""
    for name, module in toy.loaded.model.named_modules():
        if name.endswith("mlp.gate"):
            row = module.weight[0].clone()
            module.weight.copy_(torch.stack([row, row, -row, -row, 0 * row]))


def recorded(toy: Toy, unit: Unit) -> tuple[nn.Module, tuple[Tensor, ...], Tensor]:
    """Return the experts of ``unit``, the model's inputs to them, and their output."""
    module = toy.loaded.model.get_submodule(experts.module_of(slices(unit)[0]))
    calls: list[Any] = []
    handle = module.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))
    with torch.no_grad():
        toy.loaded.model(**toy.batch, use_cache=False)
    handle.remove()
    ((inputs, output),) = calls
    return module, inputs, output


def tokens_by_expert(inputs: tuple[Tensor, ...], count: int) -> list[tuple[Tensor, Tensor]]:
    """Return the rows that an expert is given and their inputs, from the call alone."""
    if len(inputs) > 1:
        rows = [torch.tensor([n for n, own in enumerate(inputs[1].tolist()) if e in own]) for e in range(count)]
        return [(own, inputs[0][own]) for own in rows]
    by_expert = inputs[0].view(count, -1, inputs[0].shape[-1])
    rows = [torch.tensor([n for n, x in enumerate(own) if x.abs().sum() > 0]) for own in by_expert]
    return [(own, x[own]) for own, x in zip(rows, by_expert, strict=True)]


def between(x: Tensor, weight: Tensor) -> Tensor:
    gate, up = nn.functional.linear(x, weight).chunk(2, dim=-1)
    return nn.functional.silu(gate) * up


@pytest.mark.parametrize("name", NAMES)
def test_slices_are_linears_whose_products_are_the_modules_own_output(name: str) -> None:
    """First projections of both classes are square or fit transposed, so only values tell how they are stored."""
    toy = make(name)
    _, unit = unit_of(toy)
    module, inputs, output = recorded(toy, unit)
    path, count = experts.module_of(slices(unit)[0]), module.gate_up_proj.shape[0]
    size = {"qwen3_vl_moe": 16, "llama4": 48}[name]
    assert {unit.linears[f"{path}.gate_up_proj[{e}]"] for e in range(count)} == {(2 * size, 32)}
    assert {unit.linears[f"{path}.down_proj[{e}]"] for e in range(count)} == {(32, size)}
    expected = torch.zeros_like(output)
    for e, (rows, x) in enumerate(tokens_by_expert(inputs, count)):
        weights = [toy.loaded.weight(f"{path}.{own}[{e}]") for own in ("gate_up_proj", "down_proj")]
        assert [tuple(weight.shape) for weight in weights] == [(2 * size, 32), (32, size)]
        own = nn.functional.linear(between(x, weights[0]), weights[1])
        if len(inputs) > 1:
            own = own * (inputs[2][rows] * (inputs[1][rows] == e)).sum(dim=1, keepdim=True)
            expected[rows] += own
        else:
            expected.view(count, -1, 32)[e, rows] = own
    assert torch.allclose(output, expected, atol=1e-6)
    assert output.abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_of_the_tokens_routed_to_each_expert_without_padding(name: str) -> None:
    toy = make(name)
    language, unit = unit_of(toy)
    module, inputs, _ = recorded(toy, unit)
    path, count = experts.module_of(slices(unit)[0]), module.gate_up_proj.shape[0]
    passes = capture(toy.loaded, [language], [toy.batch])["language"]
    ((_, found),) = block_statistics(toy.loaded, language, passes, unit.linears, keep_inputs=True)
    by_name = {linear: shared.stats for shared in found for linear in shared.linears}
    kept = toy.batch["attention_mask"].flatten().bool()
    total = 0
    for e, (rows, x) in enumerate(tokens_by_expert(inputs, count)):
        x = x[kept[rows]]
        total += len(x)
        pairs = {"gate_up_proj": x, "down_proj": between(x, toy.loaded.weight(f"{path}.gate_up_proj[{e}]"))}
        for parameter, own in pairs.items():
            if not len(own):
                assert f"{path}.{parameter}[{e}]" not in by_name
                continue
            stats = by_name[f"{path}.{parameter}[{e}]"]
            assert stats.count == len(own)
            assert stats.inputs is not None
            assert torch.allclose(stats.inputs, own, atol=1e-6)
            assert torch.allclose(stats.gram, (own.T @ own) / len(own), rtol=1e-4, atol=1e-8)
            assert torch.allclose(stats.mean_abs, own.abs().mean(dim=0), rtol=1e-4, atol=1e-8)
    assert total == TEXT_TOKENS * (2 if name == "qwen3_vl_moe" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_replaced_weights_land_in_their_slices_and_the_old_ones_return(name: str) -> None:
    toy = make(name)
    _, unit = unit_of(toy)
    model = toy.loaded.model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    chosen = slices(unit)[::3]
    other = {own: torch.randn(unit.linears[own]) for own in chosen}
    with toy.loaded.weights_replaced(other):
        for own in slices(unit):
            part = experts.parse(own)
            assert part is not None
            stored = getattr(model.get_submodule(part.module), part.parameter)[part.index]
            stored = stored.T if name == "llama4" else stored
            old = before[f"{part.module}.{part.parameter}"][part.index]
            assert torch.equal(stored, other.get(own, old.T if name == "llama4" else old))
            assert torch.equal(toy.loaded.weight(own), stored)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_experts_on_disk_give_the_same_statistics_codes_and_outputs(name: str, tmp_path: Path) -> None:
    toy = make(name)
    language, unit = unit_of(toy)

    def measured() -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        passes = capture(toy.loaded, [language], [toy.batch])["language"]
        ((_, found),) = block_statistics(toy.loaded, language, passes, unit.linears)
        solved = solve_unit(unit, GPTQ(), [Format(3, "channel")], toy.loaded, found)
        assert solved.errors == {}
        other = {own: -toy.loaded.weight(own) for own in slices(unit)[::2]}
        with toy.loaded.weights_replaced(other), torch.no_grad():
            assert all(torch.equal(toy.loaded.weight(own), weight) for own, weight in other.items())
            logits = toy.loaded.model(**toy.batch, use_cache=False).logits
        with torch.no_grad():
            assert not torch.equal(logits, toy.loaded.model(**toy.batch, use_cache=False).logits)
        return {linear: one.stats.gram for one in found for linear in one.linears}, solved.packed[0].tensors, logits

    resident = measured()
    before = {own: toy.loaded.weight(own).clone() for own in slices(unit)}
    where = locations(toy.loaded.model, {language.blocks[unit.block]: "disk"}, torch.device("cpu"))
    dispatch_model(toy.loaded.model, where, offload_dir=str(tmp_path), force_hooks=True)
    module = toy.loaded.model.get_submodule(experts.module_of(slices(unit)[0]))
    assert module.gate_up_proj.device.type == "meta"
    on_disk = measured()
    for one, other in zip(resident[:2], on_disk[:2], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert torch.equal(resident[2], on_disk[2])
    assert all(torch.equal(toy.loaded.weight(own), weight) for own, weight in before.items())


@pytest.mark.parametrize("name", NAMES)
def test_three_bits_of_an_expert_are_three_bits(name: str) -> None:
    toy = make(name)
    language, unit = unit_of(toy)
    own = {key: unit.linears[key] for key in slices(unit)}
    stored = {key: StoredLinear(Format(3, "channel"), shape) for key, shape in own.items()}
    module = toy.loaded.model.get_submodule(experts.module_of(next(iter(own))))
    size = measure_stored(toy.loaded.model, [language], stored)["total"]
    held = module.gate_up_proj.numel() + module.down_proj.numel()
    assert size["quantized_weights"] == held
    assert size["bpw_paper"] == pytest.approx(16 - 13 * held / size["parameters"])


def test_experts_without_tokens_are_rounded_to_nearest_and_counted(tmp_path: Path) -> None:
    toy = make("qwen3_vl_moe")
    never_choose_the_last(toy)
    language, unit = unit_of(toy)
    passes = capture(toy.loaded, [language], [toy.batch])["language"]
    ((_, found),) = block_statistics(toy.loaded, language, passes, unit.linears)
    path = experts.module_of(slices(unit)[0])
    unreached = {f"{path}.gate_up_proj[4]", f"{path}.down_proj[4]"}
    assert {name for shared in found for name in shared.linears} == set(unit.linears) - unreached

    store = Store.open(tmp_path)
    statistics.write(store, "stats", unit, found)
    again = statistics.read(store, "stats")
    assert again is not None
    assert [one.linears for one in again] == [one.linears for one in found]
    for stats in (found, again):
        packed = solve_unit(unit, GPTQ(), [Format(3, "channel")], toy.loaded, stats).packed[0]
        assert packed.without_tokens == (1, 5)
        for name in unreached:
            stored = {
                key.removeprefix(f"{name}:"): x for key, x in packed.tensors.items() if key.startswith(f"{name}:")
            }
            weight = QuantizedWeight.unpack(stored, unit.linears[name], Format(3, "channel")).dequantize()
            assert torch.equal(weight, round_nearest(toy.loaded.weight(name), Format(3, "channel")).dequantize())
    for none in ([], [one for one in found if not any(map(experts.parse, one.linears))]):
        errors = solve_unit(unit, GPTQ(), [Format(3, "channel")], toy.loaded, none).errors
        assert "no calibration token reached any of its 5 experts" in str(errors[0])


def test_experts_without_tokens_get_the_codebooks_of_their_format() -> None:
    toy = make("qwen3_vl_moe")
    never_choose_the_last(toy)
    language, unit = unit_of(toy)
    passes = capture(toy.loaded, [language], [toy.batch])["language"]
    ((_, found),) = block_statistics(toy.loaded, language, passes, unit.linears)
    method, form = KMeans(corrected=True), KMeans().format(3)
    packed = solve_unit(unit, method, [form], toy.loaded, found).packed[0]
    assert packed.without_tokens == (1, 5)
    for name, shape in unit.linears.items():
        stored = {key.removeprefix(f"{name}:"): x for key, x in packed.tensors.items() if key.startswith(f"{name}:")}
        original = toy.loaded.weight(name).float()
        weight = QuantizedWeight.unpack(stored, shape, form).dequantize()
        # Eight values for the few weights of a row are close to all of them.
        assert float((weight - original).norm() / original.norm()) < 0.3, name


def test_a_linear_without_tokens_stays_an_error_beside_experts() -> None:
    toy = make("llama4")
    language, unit = unit_of(toy)
    passes = capture(toy.loaded, [language], [toy.batch])["language"]
    ((_, found),) = block_statistics(toy.loaded, language, passes, unit.linears)
    left: list[SharedStats] = [one for one in found if not any("shared_expert" in name for name in one.linears)]
    errors = solve_unit(unit, GPTQ(), [Format(3, "channel")], toy.loaded, left).errors
    assert "shared_expert.down_proj: no calibration token reached it" in str(errors[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", [RoundToNearest(), GPTQ(group_size="channel"), AWQ(group_size="channel")])
@pytest.mark.parametrize("chained", [False, True])
def test_methods_run_from_requests_to_weights_in_place(name: str, method: Any, chained: bool, tmp_path: Path) -> None:
    toy = make(name)
    if name == "qwen3_vl_moe":
        never_choose_the_last(toy)
    parts = find_parts(toy.loaded.model, {"parts": toy.parts})
    units = parts["language"].select({**ALL, "layers": ["attention", "mlp"]})
    calibration = {"samples": 2} if method.needs_statistics else None
    by_key = {unit.name.replace(".", "-"): unit for unit in units}
    requests = [Request(unit, method, method.format(8), key, calibration) for key, unit in by_key.items()]
    if chained and calibration:
        requests = [replace(request, chain={link.key: link for link in requests}) for request in requests]
    store = Store.open(tmp_path)
    failed = quantize_units(requests, toy.loaded, parts, lambda _: iter([toy.batch]), store)
    assert failed == {}
    found, missing = load(requests, store)
    assert missing == []
    assert set(found.weights) == {own for unit in units for own in unit.linears}
    counted = {f"language.{block}.mlp": (1, 5) for block in range(3)}
    assert found.experts_without_tokens == (counted if name == "qwen3_vl_moe" and calibration else {})
    with torch.no_grad():
        full = toy.loaded.model(**toy.batch, use_cache=False).logits
        with toy.loaded.weights_replaced(Dequantized(found.weights)):
            quantized = toy.loaded.model(**toy.batch, use_cache=False).logits
    apart = (full - quantized).norm() / full.norm()
    assert 0 < apart < 0.05


def test_a_class_that_computes_otherwise_than_it_says_fails_calibration() -> None:
    toy = make("qwen3_vl_moe")
    language, unit = unit_of(toy)
    module = toy.loaded.model.get_submodule(experts.module_of(slices(unit)[0]))
    module._apply_gate = lambda gate_up: gate_up.chunk(2, dim=-1)[1]
    module.config._experts_implementation = "eager"  # The class's own forward, which does not ask for the gate.
    passes = capture(toy.loaded, [language], [toy.batch])["language"]
    with pytest.raises(
        RuntimeError, match=r"mlp.experts: this Qwen3VLMoeTextExperts does not compute what the weights"
    ):
        list(block_statistics(toy.loaded, language, passes, unit.linears))


def test_3d_parameters_of_an_unknown_class_are_not_experts() -> None:
    module = nn.Module()
    module.gate_up_proj, module.down_proj = nn.Parameter(torch.zeros(4, 32, 32)), nn.Parameter(torch.zeros(4, 32, 16))
    assert experts.find(module) is None
    with pytest.raises(TypeError, match="holds no experts that are known"):
        experts.at(module, "")
