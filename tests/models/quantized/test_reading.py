"""Formats and sizes that are read from a checkpoint equal its writer's settings and the weight of its files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from mmq_sweeps.models.loading import decompress, silent_bars
from mmq_sweeps.models.quantized.checkpoint import read_checkpoint
from mmq_sweeps.models.quantized.layouts import AWQ, GPTQ, PACKED
from tests.models.quantized.folders import (
    EMBEDDED,
    LANGUAGE,
    VISION,
    as_awq,
    as_gptq,
    compress,
    edit,
    fitted,
    loads,
    model_of,
    scheme,
    verdict,
)

# Formats of compressed-tensors: bits, group, symmetric, and the format that the compressor is asked for.
WRITTEN = [
    *((bits, 32, True, "pack-quantized") for bits in range(2, 9)),
    (5, "channel", True, "pack-quantized"),
    (8, "channel", True, "int-quantized"),
    (8, 32, False, "int-quantized"),
    (4, "tensor", True, "pack-quantized"),
]


@pytest.mark.parametrize(("bits", "group", "symmetric", "format"), WRITTEN)
def test_formats_of_compressed_tensors_are_read_as_they_were_written(
    tmp_path: Path, bits: int, group: int | str, symmetric: bool, format: str
) -> None:
    """transformers loads them, as the verdict says."""
    with silent_bars():
        folder = compress(
            EMBEDDED / "tiny_llava", tmp_path / "it", scheme(VISION, bits, group, symmetric), format=format
        )
        found = fitted(folder)
        assert loads(folder)
    assert {(one.widths, one.group_size, one.symmetric, one.layout) for one in found.linears.values()} == {
        ((bits,), group, symmetric, format)
    }
    assert verdict(folder).loads is True
    assert all(name.startswith("model.vision_tower.") for name in found.linears)


def test_names_are_the_modules_of_the_class_and_not_of_the_file(tmp_path: Path) -> None:
    """LLaVA's checkpoint has other names than its modules, which targets match."""
    with silent_bars():
        folder = compress(EMBEDDED / "tiny_llava", tmp_path / "it", scheme(LANGUAGE, 4, 32))
    stored, found = read_checkpoint(folder), fitted(folder)
    assert all(name.startswith("language_model.model.") for name in stored.linears)
    assert all(name.startswith("model.language_model.") for name in found.linears)
    assert found.missing == found.unexpected == found.unread == found.unstored == ()


def test_bits_are_the_bytes_of_the_file(packed_blip2: Path) -> None:
    checkpoint = read_checkpoint(packed_blip2)
    with safe_open(packed_blip2 / "model.safetensors", "pt") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118 - no mapping
    assert checkpoint.size == sum(sizes.values())
    linear = checkpoint.linears["language_model.model.decoder.layers.0.fc1"]
    # 256 rows of 64 codes of 3 bits, a scale of 32 bits for each row, and two int64 for the shape.
    assert linear.bits == 256 * 64 * 3 + 256 * 32 + 2 * 64
    assert (linear.shape, linear.weights) == ((256, 64), 256 * 64)


def test_decompressed_weights_are_those_that_were_rounded(packed_blip2: Path) -> None:
    """By the format's definition, weights read from the file are code times scale."""
    with silent_bars():
        model = model_of(packed_blip2)
        decompress(model)
    name = "language_model.model.decoder.layers.0.fc1"
    with safe_open(packed_blip2 / "model.safetensors", "pt") as file:
        words, scale = (file.get_tensor(f"{name}.{key}") for key in ("weight_packed", "weight_scale"))
    bits = (words.to(torch.int64).unsqueeze(-1) >> torch.arange(32)) & 1
    codes = (bits.reshape(256, 64, 3) << torch.arange(3)).sum(-1) - 4
    assert torch.equal(model.get_submodule(name).weight, codes * scale)


def test_the_layout_of_auto_gptq_is_read(tmp_path: Path, llama: Path) -> None:
    """A file may hold several widths, as GPTQModel's ``dynamic`` allows."""
    folder = as_gptq(
        llama,
        tmp_path / "gptq",
        lambda name: None if name == "lm_head" else 8 if name.endswith("down_proj") else 3 if "layers.0" in name else 4,
        dynamic={r"+:.*down_proj": {"bits": 8}, r"+:.*layers\.0\.(?!mlp\.down).*": {"bits": 3}},
    )
    found = fitted(folder)
    assert {one.layout for one in found.linears.values()} == {GPTQ}
    assert Counter(one.widths for one in found.linears.values()) == {(8,): 2, (3,): 6, (4,): 6}
    assert {one.group_size for one in found.linears.values()} == {32}
    assert found.contradictions == found.missing == found.unexpected == ()
    down = found.linears["model.layers.0.mlp.down_proj"]
    assert down.shape == (64, 128)
    assert down.symmetric
    assert down.bits == 64 * 128 * 8 + 4 * 64 * (8 + 16) + 128 * 32


def test_the_layout_of_autoawq_is_read(tmp_path: Path, llama: Path) -> None:
    found = fitted(as_awq(llama, tmp_path / "awq"))
    assert {(one.layout, one.widths, one.group_size, one.symmetric) for one in found.linears.values()} == {
        (AWQ, (4,), 32, False)
    }
    assert len(found.linears) == 14
    assert found.linears["model.layers.0.mlp.up_proj"].shape == (128, 64)
    assert found.missing == found.unexpected == found.unstored == ()


def test_a_linear_that_autoawq_is_not_told_to_keep_is_named(tmp_path: Path, llama: Path) -> None:
    folder = as_awq(llama, tmp_path / "awq", dense=("lm_head", "layers.1.mlp.down_proj"))
    edit(folder, lambda content: content["quantization_config"].update(modules_to_not_convert=["lm_head"]))
    assert fitted(folder).unstored == ("model.layers.1.mlp.down_proj",)


def test_a_width_that_the_configuration_contradicts_is_told(tmp_path: Path, llama: Path) -> None:
    folder = as_gptq(llama, tmp_path / "gptq", lambda name: None if name == "lm_head" else 8)
    assert "model.layers.0.mlp.down_proj: is stored in 8 bits, and quantization_config in config.json says 4" in (
        fitted(folder).contradictions
    )


def test_eight_bits_of_bitsandbytes_and_of_finegrained_fp8_are_read(tmp_path: Path, llama: Path) -> None:
    """Their loaders document the layouts: a scale for each row (SCB), and a scale for each block of the weight."""
    for method, tensors in (
        ("bitsandbytes", {"weight": torch.zeros(64, 128, dtype=torch.int8), "SCB": torch.ones(64)}),
        ("fp8", {"weight": torch.zeros(64, 128).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1, 1)}),
    ):
        folder = tmp_path / method
        _with(llama, folder, "model.layers.0.mlp.down_proj", tensors)
        config: dict[str, Any] = {"quant_method": method}
        edit(folder, lambda content, config=config: content.update(quantization_config=config))
        found = fitted(folder)
        (linear,) = found.linears.values()
        assert (linear.shape, linear.widths, linear.symmetric) == ((64, 128), (8,), True)
        assert found.missing == found.unexpected == ()


def test_four_bits_of_bitsandbytes_say_their_shape_in_a_tensor(tmp_path: Path, llama: Path) -> None:
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": [64, 128], "dtype": "float16"}).encode()
    _with(
        llama,
        tmp_path / "it",
        "model.layers.0.mlp.down_proj",
        {
            "weight": torch.zeros(64 * 128 // 2, 1, dtype=torch.uint8),
            "weight.absmax": torch.ones(128),
            "weight.quant_map": torch.ones(16),
            "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(state), dtype=torch.uint8),
        },
    )
    edit(tmp_path / "it", lambda content: content.update(quantization_config={"load_in_4bit": True}))
    found = fitted(tmp_path / "it")
    (linear,) = found.linears.values()
    assert (linear.shape, linear.widths, linear.group_size) == ((64, 128), (4,), 64)
    assert linear.bits == 8 * (64 * 128 // 2 + 4 * 128 + 4 * 16 + len(state))
    assert found.missing == found.unexpected == ()


def test_a_folder_at_full_precision_has_no_quantized_linear() -> None:
    found = fitted(EMBEDDED / "tiny_blip2")
    assert (found.linears, found.missing, found.unexpected) == ({}, (), ())
    assert found.checkpoint.configuration is None
    assert verdict(EMBEDDED / "tiny_blip2").loads is True


def test_shards_are_read_as_one_file(packed_blip2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole = load_file(packed_blip2 / "model.safetensors")
    names = sorted(whole)
    (tmp_path / "config.json").write_text((packed_blip2 / "config.json").read_text())
    for number, own in enumerate((names[::2], names[1::2]), 1):
        save_file({name: whole[name] for name in own}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    assert read_checkpoint(tmp_path).size == read_checkpoint(packed_blip2).size
    assert fitted(tmp_path).linears.keys() == fitted(packed_blip2).linears.keys()


def _with(source: Path, out: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    import shutil

    from tests.models.quantized.folders import rewrite

    shutil.copytree(source, out)
    own = {f"{name}.{key}": value for key, value in tensors.items()}
    rewrite(out, lambda weights: {key: value for key, value in weights.items() if key != f"{name}.weight"} | own)


def test_packed_is_what_the_writer_calls_it(packed_blip2: Path) -> None:
    assert {linear.layout for linear in read_checkpoint(packed_blip2).linears.values()} == {PACKED}
