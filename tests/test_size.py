from __future__ import annotations

import pytest
from torch import nn

from mmq_sweeps.affine import Format, round_nearest
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.size import measure
from mmq_sweeps.targets import Part


def quantize_all(loaded: LoadedModel, parts: dict[str, Part], bits: int) -> dict:
    return {
        name: round_nearest(loaded.model.get_submodule(name).weight, Format(bits))
        for part in parts.values()
        for unit in part.units
        for name in unit.linears
    }


def test_full_precision_is_sixteen_bits(loaded: LoadedModel, parts: dict[str, Part]) -> None:
    size = measure(loaded.model, parts.values(), {})
    assert {one["bpw_paper"] for one in (size["total"], *size["parts"].values())} == {16.0}
    assert size["total"]["bpw_exact"] == 16.0
    assert size["total"]["size_bytes"] == 2 * sum(parameter.numel() for parameter in loaded.model.parameters())


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_both_are_what_counting_by_hand_gives(loaded: LoadedModel, parts: dict[str, Part], bits: int) -> None:
    quantized = quantize_all(loaded, parts, bits)
    linear = sum(loaded.model.get_submodule(name).weight.numel() for name in quantized)
    total = sum(parameter.numel() for parameter in loaded.model.parameters())
    size = measure(loaded.model, parts.values(), quantized)["total"]
    assert size["quantized_weights"] == linear
    assert size["bpw_paper"] == pytest.approx((bits * linear + 16 * (total - linear)) / total, rel=1e-12)
    stored = sum(tensor.numel() * tensor.element_size() for one in quantized.values() for tensor in one.pack().values())
    assert size["size_bytes"] == stored + 2 * (total - linear)
    assert size["bpw_exact"] == pytest.approx(8 * size["size_bytes"] / total, rel=1e-12)


def test_a_part_counts_its_own(loaded: LoadedModel, parts: dict[str, Part]) -> None:
    quantized = {name: one for name, one in quantize_all(loaded, parts, 4).items() if name.startswith("vision_model")}
    size = measure(loaded.model, parts.values(), quantized)
    assert size["parts"]["vision"]["bpw_paper"] < 16
    assert size["parts"]["language"]["bpw_paper"] == 16.0


def test_a_shared_parameter_counts_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    model["b"].weight = model["a"].weight
    assert measure(model, [], {})["total"]["parameters"] == 16
