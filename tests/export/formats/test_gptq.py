from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from mmq_sweeps.export.formats.gptq import GPTQ
from mmq_sweeps.methods.formats import Format
from tests.export.formats.weights import assert_refused, quantized, spec, specs

FORMAT = GPTQ()


def library_layer() -> Any:
    """Return the library's class of layers from its file: the package cannot be imported with current transformers."""
    package = importlib.util.find_spec("auto_gptq")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pip install -e '.[auto-gptq]'")
    path = Path(package.submodule_search_locations[0], "nn_modules", "qlinear", "qlinear_cuda_old.py")
    spec = importlib.util.spec_from_file_location("qlinear_cuda_old", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.QuantLinear


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", ["channel", 32])
def test_auto_gptq_packs_the_same_words(bits: int, group_size: int | str) -> None:
    weight = quantized(Format(bits, group_size, True), (64, 96), bits, torch.float16)
    linear = torch.nn.Linear(96, 64, bias=False)
    linear.weight.data = weight.dequantize()
    theirs = library_layer()(bits, 96 if group_size == "channel" else group_size, 96, 64, False)
    theirs.pack(linear, weight.grid.scale, weight.grid.zero.clone(), None)
    ours = FORMAT.tensors(weight, torch.float16)
    for name in ("qweight", "qzeros", "g_idx"):
        assert torch.equal(ours[name], getattr(theirs, name)), name
    assert ours["scales"].dtype == torch.float16
    assert torch.equal(ours["scales"].float(), theirs.scales)


BLOCK = ("attn.q", "attn.k", "mlp.up")


def block_linears(format: Format, count: int = 2, path: str = "model.layers") -> dict[str, Format]:
    return {f"{path}.{block}.{linear}": format for block in range(count) for linear in BLOCK}


def test_settings_of_whole_blocks() -> None:
    found = FORMAT.settings(specs(block_linears(Format(4, 32, True))), ("lm_head",))
    assert found == {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False, "format": "gptq",
        "checkpoint_format": "gptq", "block_name_to_quantize": "model.layers",
        "backend": "gptq_torch",
    }  # fmt: skip


def test_asymmetric_zeros_are_stored_as_they_are() -> None:
    found = FORMAT.settings(specs(block_linears(Format(3, "channel"))), ())
    assert (found["format"], found["group_size"]) == ("gptq_v2", -1)
    weight = quantized(Format(4, 32), (32, 32))
    weight.grid.zero[:8, 0] = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 15])
    assert hex(int(FORMAT.tensors(weight, torch.bfloat16)["qzeros"][0, 0]) % 2**32) == "0xf6543210"


def test_dense_linears_of_a_block_are_left_out_by_both_loaders() -> None:
    linears = block_linears(Format(4, 32, True))
    dense = [name for name in linears if name.endswith("mlp.up")]
    quantized_ones = {name: format for name, format in linears.items() if name not in dense}
    found = FORMAT.settings(specs(quantized_ones), (*dense, "lm_head"))
    assert found["modules_in_block_to_quantize"] == [list(quantized_ones)]
    assert found["dynamic"] == {rf"-:^model\.layers\.{block}\.mlp\.up$": {} for block in (0, 1)}


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"model.layers.9.fc": Format(5, 32, True)}, "has 5 bits, and loaders take 2, 3, 4, 8"),
        (
            {"model.layers.9.fc": Format(3, 32, True)},
            "has 3 bits, group_size=32, symmetric=true where model.layers.0.attn.q",
        ),
        ({"model.layers.9.fc": Format(4, 32)}, "symmetric=false where"),
        ({"model.layers.9.fc": Format(4, 8, True)}, "group_size=8"),
        ({"model.layers.9.fc": Format(4, "tensor", True)}, "group_size=tensor"),
        ({"vision.layers.9.fc": Format(4, 32, True)}, "is not in model.layers as model.layers.0.attn.q is"),
        ({"lm_head": Format(4, 32, True)}, "outside the blocks"),
        ({"model.layers.9.fc": Format(4, 32, real_zero=True)}, "fractions of a step"),
    ],
)
def test_a_linear_that_cannot_be_held_is_named(odd: dict[str, Format], reason: str) -> None:
    assert FORMAT.problem(specs(block_linears(Format(4, 32, True))), torch.bfloat16) is None
    found = FORMAT.problem(specs({**block_linears(Format(4, 32, True)), **odd}), torch.bfloat16)
    assert_refused(found, next(iter(odd)), reason)


def test_a_linear_of_an_odd_size_is_named() -> None:
    found = FORMAT.problem({"model.layers.0.fc": spec(Format(4, 16, True), (48, 64))}, torch.float16)
    assert_refused(found, "is 48 x 64, and loaders take multiples of 32")


def test_a_model_of_pictures_first_is_refused() -> None:
    found = FORMAT.problem(specs(block_linears(Format(4, 32, True))), torch.float16, (), "pixel_values")
    assert found is not None
    assert "text models only" in found
    assert "--format compressed-tensors" in found


def test_float32_is_refused() -> None:
    found = FORMAT.problem(specs(block_linears(Format(4, 32, True))), torch.float32)
    assert found is not None
    assert "choose --dtype float16 or bfloat16" in found


@pytest.mark.parametrize(("format", "held"), [
    (Format(4, 32, True), True), (Format(3, 32), True), (Format(2, "channel"), True),
    (Format(8, 32, True), False), (Format(4, 32), False), (Format(8, 32), False),
])  # fmt: skip
def test_bfloat16_is_held_if_float16_products_are_exact(format: Format, held: bool) -> None:
    found = FORMAT.problem(specs(block_linears(format)), torch.bfloat16)
    assert FORMAT.problem(specs(block_linears(format)), torch.float16) is None
    if held:
        # As the loader multiplies: in float16, then rounded to the dtype.
        weight = quantized(format, (32, 64))
        steps = (
            weight.codes.to(torch.float16).reshape(*weight.grid.scale.shape, -1) - weight.grid.zero.half()[:, :, None]
        )
        product = (steps * weight.grid.scale.half()[:, :, None]).to(torch.bfloat16).reshape(weight.shape)
        assert torch.equal(product, weight.dequantize().to(torch.bfloat16))
        assert found is None
    else:
        assert "its loader multiplies in float16; use --dtype float16" in str(found)


def test_scales_beyond_float16_are_an_error() -> None:
    weight = quantized(Format(4, "channel", True), (32, 32)).times_power_of_two(-20)
    with pytest.raises(ValueError, match="32 of 32 scales are not exact in float16"):
        FORMAT.tensors(weight, torch.bfloat16)
