from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st

from mmq_sweeps.export.formats.compressed_tensors import CompressedTensors
from mmq_sweeps.methods.formats import Format, round_nearest
from tests.export.formats.weights import BITS, DTYPES, SEEDS, assert_layout, assert_refused, quantized, spec, specs

FORMAT = CompressedTensors()
FORMATS = st.builds(Format, BITS, st.sampled_from(["tensor", "channel", 4, 12]), symmetric=st.booleans())
ROWS, COLUMNS = st.integers(1, 7), st.integers(1, 5).map(lambda count: 12 * count)


def scheme_of(format: Format) -> QuantizationScheme:
    """Return the scheme as the library reads it from the settings."""
    (group,) = FORMAT.settings({"linear": spec(format)}, ())["config_groups"].values()
    return QuantizationScheme.model_validate(group)


def decompressed(tensors: dict[str, torch.Tensor], scheme: QuantizationScheme) -> torch.Tensor:
    compressor = BaseCompressor.get_value_from_registry(str(scheme.format))
    assert set(tensors) == set(compressor.compression_param_names(scheme))
    weight: torch.Tensor = compressor.decompress(dict(tensors), scheme)["weight"]
    return weight


@settings(deadline=None)
@given(FORMATS, ROWS, COLUMNS, DTYPES, SEEDS)
def test_the_library_reads_what_was_measured(
    format: Format, rows: int, columns: int, dtype: torch.dtype, seed: int
) -> None:
    weight = quantized(format, (rows, columns), seed, dtype)
    tensors = FORMAT.tensors(weight, dtype)
    assert_layout(FORMAT.layout(spec(format, (rows, columns)), dtype), tensors)
    read = decompressed(tensors, scheme_of(format))
    assert read.dtype == dtype
    assert torch.equal(read, weight.dequantize().to(dtype))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_rounded_weight_is_held(bits: int, symmetric: bool) -> None:
    weight = round_nearest(
        torch.randn(8, 24, generator=torch.Generator().manual_seed(bits)), Format(bits, 8, symmetric)
    )
    tensors = FORMAT.tensors(weight, torch.float32)
    assert torch.equal(decompressed(tensors, scheme_of(weight.format)), weight.dequantize())


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        (Format(3, "channel", True), ("pack-quantized", 3, True, "channel", None)),
        (Format(3, 16, True), ("pack-quantized", 3, True, "group", 16)),
        # Zeros are folded into codes with a bit more.
        (Format(3, 16), ("pack-quantized", 4, True, "group", 16)),
        (Format(7, "channel"), ("pack-quantized", 8, True, "channel", None)),
        (Format(8, 16), ("int-quantized", 8, False, "group", 16)),
        (Format(3, "tensor"), ("pack-quantized", 3, False, "tensor", None)),
    ],
)
def test_settings_say_how_a_linear_is_stored(format: Format, expected: tuple[Any, ...]) -> None:
    (group,) = FORMAT.settings({"linear": spec(format)}, ())["config_groups"].values()
    weights = group["weights"]
    assert (
        group["format"],
        weights["num_bits"],
        weights["symmetric"],
        weights["strategy"],
        weights.get("group_size"),
    ) == (expected)


def test_linears_of_a_scheme_share_a_group() -> None:
    names = [f"model.layers.{block}.{linear}" for block in range(3) for linear in ("q_proj", "k_proj", "up_proj")]
    formats = {name: Format(4 if "up" in name else 3, 16, True) for name in names}
    formats["model.layers.1.up_proj"] = Format(8, 16)
    found = FORMAT.settings(specs(formats), ("model.layers.0.down_proj", "lm_head"))
    json.dumps(found)  # config.json takes it
    QuantizationConfig.model_validate(found)
    assert found["format"] == "mixed-precision"
    assert found["quantization_status"] == "compressed"
    assert found["ignore"] == ["lm_head", "model.layers.0.down_proj", "re:.*lm_head"]
    matched = {
        name: [
            number
            for number, group in found["config_groups"].items()
            if any(match(name, one) for one in group["targets"])
        ]
        for name in [*names, "model.layers.0.down_proj", "lm_head"]
    }
    assert all(len(matched[name]) == 1 for name in names)
    assert matched["lm_head"] == matched["model.layers.0.down_proj"] == []
    bits = {name: found["config_groups"][matched[name][0]]["weights"]["num_bits"] for name in names}
    assert bits == {name: format.bits for name, format in formats.items()}


def match(name: str, target: str) -> bool:
    return bool(re.match(target[3:], name)) if target.startswith("re:") else name == target


def test_one_packing_is_the_format_of_the_whole() -> None:
    found = FORMAT.settings(specs({"a.0.b": Format(3, 16, True), "a.1.b": Format(5, 16)}), ())
    assert found["format"] == "pack-quantized"


def test_a_quantized_head_is_not_ignored() -> None:
    assert FORMAT.settings({"lm_head": spec(Format(4, 16, True))}, ("model.proj",))["ignore"] == ["model.proj"]


@pytest.mark.parametrize(
    ("linear", "reason"),
    [
        (spec(Format(4, 16, real_zero=True)), "fractions of a step"),
        (spec(Format(4, 16), input_scaled=True), "input scales"),
        (spec(Format(4, 16), kind="embeddings"), "token embeddings"),
        (spec(Format(4, 16), kind="expert"), "tensor of experts"),
    ],
)
def test_a_linear_that_cannot_be_held_is_named(linear: Any, reason: str) -> None:
    found = FORMAT.problem({"fits": spec(Format(4, 16)), "model.odd": linear}, torch.float32)
    assert_refused(found, "model.odd", reason, "--format dequantized")


def test_every_mix_of_codes_is_held() -> None:
    mix = {
        f"linear{bits}{symmetric}": Format(bits, 16, symmetric) for bits in range(2, 9) for symmetric in (True, False)
    }
    assert FORMAT.problem(specs(mix), torch.bfloat16) is None
    found = FORMAT.problem(specs(mix), torch.float64)
    assert found is not None
    assert "choose --dtype float32 or bfloat16 or float16" in found


def test_a_scale_that_the_dtype_would_round_is_an_error() -> None:
    weight = quantized(Format(4, 16, True), (8, 32), dtype=torch.float16)
    assert FORMAT.holds(FORMAT.tensors(weight, torch.float32), weight)
    with pytest.raises(ValueError, match=r"of 16 scales are not exact in bfloat16, e\.g\. .*model\.dtype=bfloat16"):
        FORMAT.tensors(weight, torch.bfloat16)


def test_scales_beyond_a_half_are_an_error_in_float16() -> None:
    weight = quantized(Format(4, "channel", True), (4, 32)).times_power_of_two(-40)
    assert weight.exponents
    assert FORMAT.holds(FORMAT.tensors(weight, torch.bfloat16), weight)
    with pytest.raises(ValueError, match="not exact in float16"):
        FORMAT.tensors(weight, torch.float16)


@pytest.mark.parametrize("zero", [2.5, -1.0, 16.0])
def test_a_zero_that_is_no_code_is_an_error(zero: float) -> None:
    weight = quantized(Format(4, "channel"), (4, 32))
    weight.grid.zero[2] = zero
    with pytest.raises(ValueError, match=rf"1 of 4 zeros are not codes of 4 bits, e\.g\. {zero:g}"):
        FORMAT.tensors(weight, torch.bfloat16)
