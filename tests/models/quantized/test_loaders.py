"""Verdicts on checkpoints agree with transformers: every defect is named, and the checkpoint loads no better than said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmq_sweeps.models.loading import silent_bars
from mmq_sweeps.models.quantized.loaders import of_vllm
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
    pack,
    rewrite,
    scheme,
    verdict,
)

FC1 = "language_model.model.decoder.layers.0.fc1"
HEAD = "language_model.lm_head"


def configured(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda content: change(content["quantization_config"]))


def stored(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def apply(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        change(weights)
        return weights

    return lambda folder: rewrite(folder, apply)


def quantize_the_tied_head(folder: Path) -> None:
    def head(weights: dict[str, Tensor]) -> None:
        rows, columns = weights["language_model.model.decoder.embed_tokens.weight"].shape
        weights[f"{HEAD}.weight_packed"] = torch.zeros(rows, columns * 3 // 32, dtype=torch.int32)
        weights[f"{HEAD}.weight_scale"] = torch.ones(rows, 1)
        weights[f"{HEAD}.weight_shape"] = torch.tensor([rows, columns])

    stored(head)(folder)
    configured(lambda own: own["config_groups"]["group_1"]["targets"].append("re:.*lm_head"))(folder)
    configured(lambda own: own.update(ignore=[]))(folder)


def repack_in_old_words(weights: dict[str, Tensor]) -> None:
    """Repack as compressed-tensors did until 0.17.1: 10 whole codes of 3 bits in a word."""
    weights[f"{FC1}.weight_packed"] = torch.zeros(256, 7, dtype=torch.int32)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a target that matches nothing": (
        configured(lambda own: own["config_groups"]["group_1"].update(targets=["re:^decoder.*fc1$"])),
        "linears are stored quantized, and no target names them",
    ),
    "a linear that is ignored": (
        configured(lambda own: own["ignore"].append(FC1)),
        f"1 linears are stored quantized, and no target names them, so their weights are drawn at random ({FC1})",
    ),
    "a linear that is named and dense": (
        configured(lambda own: own.update(ignore=[name for name in own["ignore"] if name != "language_projection"])
                   or own["config_groups"]["group_1"]["targets"].append("language_projection")),
        "1 linears are named by the configuration and not stored so",
    ),
    "a missing scale": (
        stored(lambda weights: weights.pop(f"{FC1}.weight_scale")),
        f"1 weights are missing, which a loader draws at random ({FC1}.weight_scale)",
    ),
    "a missing norm": (
        stored(lambda weights: weights.pop("vision_model.post_layernorm.weight")),
        "1 weights are missing, which a loader draws at random (vision_model.post_layernorm.weight)",
    ),
    "a tensor of another model": (
        stored(lambda weights: weights.update({"vision_model.encoder.layers.9.fc.weight": torch.zeros(2)})),
        "1 tensors have no place in the model (vision_model.encoder.layers.9.fc.weight)",
    ),
    "no status": (
        configured(lambda own: own.pop("quantization_status")),
        "quantization_status is None, not compressed",
    ),
    "another width than stored": (
        configured(lambda own: own["config_groups"]["group_1"]["weights"].update(num_bits=4)),
        f"{FC1}: is stored in 3 bits, and group_1 says 4",
    ),
    "another group than stored": (
        configured(lambda own: own["config_groups"]["group_0"]["weights"].update(group_size=16)),
        "has a scale for every 32 weights, and group_0 says 16 weights",
    ),
    "zeros that are not there": (
        configured(lambda own: own["config_groups"]["group_1"]["weights"].update(symmetric=False)),
        f"{FC1}: is stored with no zeros, and group_1 says symmetric=false",
    ),
    "words of an old release": (
        stored(repack_in_old_words),
        "are packed as compressed-tensors did until 0.17.1",
    ),
    "a tied head": (quantize_the_tied_head, f"1 quantized linears are tied to another module, which cannot be loaded so: "
                                            f"untie them ({HEAD})"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_named_and_does_not_load(packed_copy: Path, name: str) -> None:
    change, sentence = BROKEN[name]
    change(packed_copy)
    found = verdict(packed_copy)
    assert found.loads is False
    assert any(sentence in reason for reason in found.reasons), found.reasons
    with silent_bars():
        assert not loads(packed_copy)


def test_a_target_that_matches_nothing_is_named_although_all_loads(packed_copy: Path) -> None:
    """The other tool may have meant a module that this model lacks."""
    configured(lambda own: own["config_groups"]["group_1"]["targets"].append("model.nowhere"))(packed_copy)
    assert verdict(packed_copy).reasons == (
        "1 targets match no module of Blip2ForConditionalGeneration (model.nowhere)",
    )


def test_packed_zeros_do_not_load(tmp_path: Path) -> None:
    """llm-compressor's W4A16_ASYM writes packed zeros."""
    with silent_bars():
        folder = compress(EMBEDDED / "tiny_llava", tmp_path / "it", scheme(VISION, 4, 32, symmetric=False))
        found = verdict(folder)
        assert found.loads is False
        assert "linears have packed zeros, which it gives another shape" in found.reasons[0]
        assert not loads(folder)


def test_a_group_that_does_not_divide_a_row_is_told_since_loading_it_passes(packed_copy: Path) -> None:
    configured(lambda own: own["config_groups"]["group_0"]["weights"].update(group_size=48))(packed_copy)
    assert any("groups of 48, which do not divide its 64 columns" in reason for reason in verdict(packed_copy).reasons)


@pytest.mark.parametrize(("bits", "since"), [(2, "0.15"), (3, "0.18"), (4, "0.15"), (7, "0.18"), (8, "0.15")])
def test_the_release_that_reads_the_widths_is_named(tmp_path: Path, bits: int, since: str) -> None:
    with silent_bars():
        folder = compress(EMBEDDED / "tiny_llava", tmp_path / "it", scheme("re:.*layers.0.self_attn.q_proj", bits))
    assert verdict(folder).needs == (f"compressed-tensors>={since}",)


def test_gptq_of_transformers_is_for_text_and_one_width(tmp_path: Path, llama: Path) -> None:
    text = as_gptq(llama, tmp_path / "one", lambda name: None if name == "lm_head" else 4)
    assert (verdict(text).loads, verdict(text).needs) == (True, ("optimum", "gptqmodel"))
    several = as_gptq(
        llama, tmp_path / "several", lambda name: None if name == "lm_head" else 8 if "down" in name else 4,
        dynamic={"+:.*down_proj": {"bits": 8}},
    )  # fmt: skip
    assert verdict(several).reasons == (
        "its GPTQ takes one width a checkpoint, not 4, 8 bits",
        "it ignores dynamic, which GPTQModel reads",
    )
    pictures = as_gptq(
        EMBEDDED / "tiny_blip2", tmp_path / "packed_blip2", lambda name: 4 if name.endswith("fc1") else None
    )
    assert verdict(pictures).reasons == (
        "its GPTQ takes text models only, and Blip2ForConditionalGeneration begins with pixel_values",
    )


def test_awq_names_its_packages(tmp_path: Path, llama: Path) -> None:
    found = verdict(as_awq(llama, tmp_path / "awq"))
    assert (found.loads, found.needs) == (True, ("gptqmodel", "accelerate"))
    assert found.told() == "yes, with gptqmodel and accelerate"


def test_a_quantization_that_only_a_file_beside_says_is_not_read(tmp_path: Path, llama: Path) -> None:
    folder = as_gptq(llama, tmp_path / "gptq", lambda name: None if name == "lm_head" else 4)
    edit(folder, lambda content: content.pop("quantization_config"))
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 32, "desc_act": false, "sym": true}')
    found = verdict(folder)
    assert found.loads is False
    assert "reads no quantization in quantize_config.json" in found.reasons[0]
    assert fitted(folder).checkpoint.configuration.method == "gptq"  # type: ignore[union-attr]


def test_a_method_that_is_not_known_is_said_to_be(tmp_path: Path, llama: Path) -> None:
    folder = as_gptq(llama, tmp_path / "it", lambda name: None if name == "lm_head" else 4)
    edit(folder, lambda content: content["quantization_config"].update(quant_method="mine"))
    assert verdict(folder).told() == "not tried: quant_method mine is not known here"


@pytest.mark.parametrize(
    ("schemes", "reasons"),
    [
        ([(VISION, 4), (LANGUAGE, 4)], []),
        ([(VISION, 4), (LANGUAGE, 3)], ["takes 4 bits packed only, not pack-quantized 3"]),
        ([(VISION, 8)], ["takes 4 bits packed only, not pack-quantized 8"]),
        (
            [("re:.*language_model.*layers.0.self_attn.(q_proj|k_proj)$", 4)],
            ["joins q_proj, k_proj, v_proj, which must be alike (language_model.model.decoder.layers.0.self_attn)"],
        ),
        (
            [("re:.*qformer.*crossattention.attention.query$", 4)],
            [
                "takes the connector dense only (qformer.encoder.layer.0.crossattention.attention.query, "
                "qformer.encoder.layer.1.crossattention.attention.query)"
            ],
        ),
    ],
)
def test_vllm_on_a_cpu_takes_four_bits_in_vision_and_language(
    tmp_path: Path, schemes: list[tuple[str, int]], reasons: list[str]
) -> None:
    """The expected reasons were found by running vLLM (docs/models.md), which is not installed here."""
    with silent_bars():
        own = [scheme(target, bits) for target, bits in schemes]
        found = of_vllm(fitted(compress(EMBEDDED / "tiny_blip2", tmp_path / "it", *own)))
    assert list(found.reasons) == reasons
    assert found.loads is not bool(reasons)


def test_the_words_of_a_width_are_what_compressed_tensors_writes() -> None:
    """The tests of GPTQ use the same packing, along the other dimension."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = torch.randint(0, 8, (5, 64))
    theirs = pack_to_int32((codes - 4).to(torch.int8), 3)
    assert torch.equal(pack(codes.T, 3).T, theirs)
