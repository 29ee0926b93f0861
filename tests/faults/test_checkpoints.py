"""A checkpoint must be whole, without an adapter, and quantized in a known way or not at all; all others are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from omegaconf import OmegaConf
from safetensors.torch import load_file

from launch.planning import preflight as launch_check
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.identity.checkpoint import quantized_already
from mmq_sweeps.models.loading import load_model
from tests.faults.checkpoints import Composed, copied, edit, found, rewrite, settings


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with quiet_libraries():
        yield


# Checkpoints that are quantized already

ELSEWHERE = "give the checkpoint that this one was made from"
QUANTIZED = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "bitsandbytes": {"load_in_8bit": True, "llm_int8_threshold": 6.0},
    "gptq with 4 bits": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq with 4 bits": {"quant_method": "awq", "bits": 4, "zero_point": True},
}


@pytest.mark.parametrize("method", QUANTIZED)
def test_a_checkpoint_that_says_it_is_quantized_and_is_not_is_refused(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A loader would look for its scales, miss them, and draw every weight at random."""
    folder = copied("tiny_blip2", tmp_path)
    edit(folder / "config.json", lambda content: content.update(quantization_config=QUANTIZED[method]))
    said = (
        f"is quantized already, by {method.split()[0]}, and transformers {transformers.__version__} does not load it: "
    )
    assert_refused(composed, folder, monkeypatch, said)
    with pytest.raises(ValueError, match="its files hold no quantized weights"):
        load_model(settings(composed, folder)["model"])


@pytest.mark.parametrize("place", ["text_config", "vision_config"])
@pytest.mark.parametrize("method", QUANTIZED)
def test_a_quantization_that_transformers_does_not_read_is_refused(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, place: str
) -> None:
    folder = copied("tiny_blip2", tmp_path)
    values = {"quantization_config": QUANTIZED[method]}
    edit(folder / "config.json", lambda content: content[place].update(values))
    assert_refused(composed, folder, monkeypatch, f"is quantized already, by {method} (", ELSEWHERE)


@pytest.mark.parametrize(
    ("name", "content", "method"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": False}, "an unnamed method with 4 bits"),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 128, "version": "GEMM"}, "an unnamed method with 4 bits"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "FP8"),
    ],
)
def test_a_file_beside_the_configuration_says_so_as_well(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: dict[str, Any], method: str
) -> None:
    folder = copied("tiny_llava", tmp_path)
    (folder / name).write_text(json.dumps(content))
    assert_refused(
        composed, folder, monkeypatch, f"is quantized already, by {method} ({name} beside its config.json)", ELSEWHERE
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_weights_that_are_stored_in_eight_bits_need_no_configuration(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    folder = copied("tiny_blip2", tmp_path)
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    rewrite(folder, lambda weights: {**weights, name: weights[name].to(dtype)})
    assert_refused(
        composed, folder, monkeypatch, f"is quantized already, since model.safetensors stores {name} as ", ELSEWHERE
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_eight_bits_count_under_any_name_and_in_pickled_files(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, dtype: torch.dtype
) -> None:
    folder = copied("tiny_blip2", tmp_path)
    name = "query_tokens"
    rewrite(folder, lambda weights: {**weights, name: weights[name].to(dtype)})
    if file == "pytorch_model.bin":
        torch.save(load_file(folder / "model.safetensors"), folder / file)
        (folder / "model.safetensors").unlink()
    assert_refused(composed, folder, monkeypatch, f"is quantized already, since {file} stores {name} as ", ELSEWHERE)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_of_full_precision_are_taken(composed: Composed, tmp_path: Path, zipped: bool) -> None:
    folder = copied("tiny_blip2", tmp_path)
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (folder / "model.safetensors").unlink()
    assert found(composed, folder) == []


def test_a_quantized_checkpoint_of_the_hub_is_refused(tmp_path: Path) -> None:
    """Only a checkpoint in a folder is measured, since a hub checkpoint's identity is a commit, found without its files."""
    folder = copied("tiny_blip2", tmp_path)
    values = {"quantization_config": QUANTIZED["gptq with 4 bits"]}
    edit(folder / "config.json", lambda content: content.update(values))
    refused = quantized_already("someone/model", values, folder)
    assert refused is not None
    assert "model.checkpoint=someone/model: is quantized already, by gptq with 4 bits" in refused
    assert "only a folder whose config.json says so in quantization_config is measured as it is" in refused
    assert quantized_already(str(folder), values, folder) is None


def test_an_adapter_is_refused(composed: Composed, tmp_path: Path) -> None:
    """An adapter would be loaded with peft and left out without it, under the same cell ids."""
    folder = copied("tiny_blip2", tmp_path)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}')
    with pytest.raises(ValueError, match=r"holds an adapter \(adapter_config.json\).*give the merged checkpoint"):
        load_model(settings(composed, folder)["model"])


def assert_refused(composed: Composed, folder: Path, monkeypatch: pytest.MonkeyPatch, *messages: str) -> None:
    """Check that the model is refused before a job is submitted, and on loading before its weights are read."""
    config = settings(composed, folder)

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("mmq_sweeps.models.loading._read_weights", read)
    with pytest.raises(ValueError, match=f"^model.checkpoint={folder}: ") as error:
        load_model(config["model"])
    assert all(message in str(error.value) for message in messages)
    sweep = plan([OmegaConf.create(config)])
    assert launch_check.look(sweep, folder.parent)["problems"] == [str(error.value)]


def test_a_quantization_that_is_null_is_none(composed: Composed, tmp_path: Path) -> None:
    folder = copied("tiny_blip2", tmp_path)
    edit(folder / "config.json", lambda content: content.update(quantization_config=None))
    assert found(composed, folder) == []


# Weights that are missing


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("tiny_blip2", "language_model.model.decoder.embed_tokens.weight"),
        ("tiny_llava", "language_model.lm_head.weight"),
        ("tiny_llava", "language_model.model.embed_tokens.weight"),
    ],
)
def test_an_embedding_or_head_that_is_missing_is_named(
    composed: Composed, tmp_path: Path, name: str, missing: str
) -> None:
    """The missing embedding or head, tied or not, would be drawn at random."""
    folder = copied(name, tmp_path)
    rewrite(folder, lambda weights: {key: value for key, value in weights.items() if key != missing})
    with pytest.raises(ValueError, match=r"weights are missing \(.*(embed_tokens|lm_head)\.weight"):
        found(composed, folder)
