"""Small models with random weights, written with our tensors and settings and loaded by transformers alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.export.formats.base import CheckpointFormat, LinearSpec
from mmq_sweeps.export.formats.compressed_tensors import CompressedTensors
from mmq_sweeps.export.formats.dequantized import Dequantized
from mmq_sweeps.methods.formats import Format, QuantizedWeight
from tests.export.formats.weights import quantized
from tests.models.toys import toy_batch, toy_model

# Every way a linear is stored, in turn.
MIX = (
    *(Format(bits, size, True) for bits in range(2, 9) for size in ("channel", 16)),
    *(Format(bits, 16) for bits in range(2, 9)),
    *(Format(bits, "tensor", symmetric) for bits in (3, 8) for symmetric in (True, False)),
)  # fmt: skip


@dataclass(frozen=True)
class Small:
    model: transformers.PreTrainedModel
    batch: Mapping[str, Tensor]


def small_model(name: str) -> Small:
    torch.manual_seed(0)
    text = {"input_ids": torch.randint(5, 90, (2, 9))}
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 96, "pad_token_id": 1}
    if name == "llama":
        config = transformers.LlamaConfig(**sizes, intermediate_size=48, tie_word_embeddings=False)
        return Small(transformers.LlamaForCausalLM(config).eval(), text)
    if name == "opt":
        config = transformers.OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=32)
        return Small(transformers.OPTForCausalLM(config).eval(), text)
    return Small(toy_model(name).model, toy_batch(name))


def write(
    model: transformers.PreTrainedModel, weights: Mapping[str, QuantizedWeight], form: CheckpointFormat, folder: Path
) -> None:
    """Write ``model`` with ``weights`` in place of its linears' own, by its modules' names."""
    dtype = model.dtype
    specs = {name: LinearSpec(weight.format, weight.shape) for name, weight in weights.items()}
    assert form.problem(specs, dtype) is None
    tied = getattr(model, "all_tied_weights_keys", {})
    stored = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    for name, weight in weights.items():
        del stored[f"{name}.weight"]
        for ending, tensor in form.tensors(weight, dtype).items():
            stored[f"{name}.{ending}"] = tensor
    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = copy.deepcopy(model.config)
    dense = tuple(name for name in linears(model) if name not in weights)
    config.save_pretrained(folder)
    if found := form.settings(specs, dense):
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, "quantization_config": found}))


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def logits(folder: Path, small: Small, dtype: torch.dtype) -> Tensor:
    """Return the logits of the model that transformers loads from ``folder``, in which nothing may be missing."""
    with quiet_libraries():
        model, info = type(small.model).from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert {name: found for name, found in info.items() if found} == {}
    batch = {name: value.to(dtype) if value.is_floating_point() else value for name, value in small.batch.items()}
    with torch.no_grad():
        found: Tensor = model.eval()(**batch).logits
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["opt", "llama", "blip2_opt_2_7b", "llava_1_5_7b"])
def test_a_mix_is_loaded_as_the_dequantized_model(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    small = small_model(name)
    model = small.model.to(dtype)
    # Every fourth linear stays dense, as a part or some blocks may.
    chosen = [name for index, name in enumerate(linears(model)) if index % 4 and not name.endswith("lm_head")]
    formats = dict(zip(chosen, cycle(MIX), strict=False))
    assert len(chosen) >= 10
    weights = {
        name: quantized(format, tuple(linears(model)[name].weight.shape), seed, dtype)  # type: ignore[arg-type]
        for seed, (name, format) in enumerate(formats.items())
    }
    write(model, weights, CompressedTensors(), tmp_path / "packed")
    write(model, weights, Dequantized(), tmp_path / "dense")
    expected = logits(tmp_path / "dense", small, dtype)
    assert torch.isfinite(expected).all()
    assert torch.equal(logits(tmp_path / "packed", small, dtype), expected)
