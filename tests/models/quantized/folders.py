"""Write checkpoints with other tools' own code, and break them."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmq_sweeps.models.quantized.checkpoint import read_checkpoint
from mmq_sweeps.models.quantized.loaders import Verdict, of_transformers
from mmq_sweeps.models.quantized.measuring import fit_class
from mmq_sweeps.models.quantized.names import FittedCheckpoint

EMBEDDED = Path(__file__).parents[3] / "mmq_sweeps" / "models" / "embedded"
VISION = "re:.*vision.*(qkv|q_proj|k_proj|v_proj|projection|out_proj|fc1|fc2)$"
LANGUAGE = "re:.*language_model.*(q_proj|k_proj|v_proj|out_proj|o_proj|fc1|fc2|gate_proj|up_proj|down_proj)$"


def model_of(folder: Path) -> transformers.PreTrainedModel:
    named = json.loads((folder / "config.json").read_text())["architectures"][0]
    found: transformers.PreTrainedModel = getattr(transformers, named).from_pretrained(folder)
    return found


def scheme(
    targets: str | list[str], bits: int, group: int | str = "channel", symmetric: bool = True
) -> QuantizationScheme:
    strategy = group if isinstance(group, str) else "group"
    size = group if isinstance(group, int) else None
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy=strategy, group_size=size)
    return QuantizationScheme(targets=[targets] if isinstance(targets, str) else targets, weights=weights)


def compress(source: Path, out: Path, *schemes: QuantizationScheme, format: str | None = "pack-quantized") -> Path:
    """Quantize the checkpoint in ``source`` by rounding, and let compressed-tensors write it to ``out``."""
    model = model_of(source)
    groups = {f"group_{number}": one for number, one in enumerate(schemes)}
    config = QuantizationConfig(config_groups=groups, ignore=["re:.*lm_head"], quantization_status="frozen")
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        if (own := getattr(module, "quantization_scheme", None)) is not None:
            _fit(module, own.weights)
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=format)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(out)
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and not (out / path.name).exists():
            shutil.copy(path, out)
    return out


def _fit(module: nn.Module, args: QuantizationArgs) -> None:
    weight = module.weight.detach()
    groups = 1 if args.strategy in ("channel", "tensor") else weight.shape[1] // args.group_size
    rows = 1 if args.strategy == "tensor" else len(weight)
    grouped = weight.reshape(rows, groups, -1)
    if args.symmetric:
        scale, zero = grouped.abs().amax(-1) / (2 ** (args.num_bits - 1) - 0.5), None
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scale = (high - low) / (2**args.num_bits - 1)
        zero = (-low / scale).round() - 2 ** (args.num_bits - 1)
    with torch.no_grad():
        module.weight_scale.copy_(scale.reshape(module.weight_scale.shape))
        if zero is not None:
            module.weight_zero_point.copy_(zero.reshape(module.weight_zero_point.shape))


def small_llama(out: Path) -> Path:
    """Write a LLaMA with random weights, of a size that every layout can hold."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.float16).save_pretrained(out)
    return out


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack ``codes`` ``[n, m]`` along the first dimension into 32-bit words, a stream of low bits first."""
    stream = (codes.to(torch.int64).unsqueeze(1) >> torch.arange(bits).view(1, -1, 1)) & 1
    stream = stream.reshape(-1, 32, codes.shape[1])
    words = (stream << torch.arange(32).view(1, -1, 1)).sum(1)
    return (words - ((words >> 31) << 32)).to(torch.int32)


def as_gptq(source: Path, out: Path, widths: Callable[[str], int | None], group: int = 32, **more: Any) -> Path:
    """Write ``source`` in the layout of auto-gptq, with the width that ``widths`` gives each linear; None leaves it dense."""

    def stored(name: str, weight: Tensor) -> dict[str, Tensor] | None:
        if (bits := widths(name)) is None:
            return None
        outputs, inputs = weight.shape
        codes = torch.randint(0, 2**bits, (inputs, outputs))
        return {
            "qweight": pack(codes, bits),
            "qzeros": pack(torch.full((outputs, inputs // group), 2 ** (bits - 1) - 1), bits).T.contiguous(),
            "scales": torch.rand(inputs // group, outputs).half() / 100,
            "g_idx": torch.arange(inputs, dtype=torch.int32) // group,
        }

    config = {"quant_method": "gptq", "bits": 4, "group_size": group, "sym": True, "desc_act": False, **more}
    return _rewritten(source, out, stored, config)


def as_awq(source: Path, out: Path, dense: tuple[str, ...] = ("lm_head",), group: int = 32) -> Path:
    """Write ``source`` as autoawq's own linear packs it."""
    import warnings

    with warnings.catch_warnings(record=True):  # The library resets the filters before it warns.
        from awq.modules.linear.gemm import WQLinear_GEMM

    def stored(name: str, weight: Tensor) -> dict[str, Tensor] | None:
        if name.endswith(dense):
            return None
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False).half()
        scales = torch.rand(len(weight), weight.shape[1] // group).half() / 100 + 0.01
        zeros = torch.full(scales.shape, 8.0)
        packed = WQLinear_GEMM.from_linear(linear, 4, group, False, scales.T.contiguous(), zeros.T.contiguous())
        return {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales}

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return _rewritten(source, out, stored, {**config, "modules_to_not_convert": list(dense)})


def _rewritten(
    source: Path, out: Path, stored: Callable[[str, Tensor], dict[str, Tensor] | None], config: Mapping[str, Any]
) -> Path:
    shutil.copytree(source, out)
    linears = {name for name, module in model_of(source).named_modules() if isinstance(module, nn.Linear)}
    weights = {}
    for name, weight in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        packed = stored(module, weight) if module in linears else None
        weights |= {name: weight} if packed is None else {f"{module}.{key}": value for key, value in packed.items()}
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, out / "model.safetensors", {"format": "pt"}
    )
    edit(out, lambda content: content.update(quantization_config=dict(config)))
    return out


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(dict(change(load_file(path))), path, metadata={"format": "pt"})


def flip_a_byte(path: Path) -> None:
    """Change a byte of a file's last tensor."""
    content = bytearray(path.read_bytes())
    (header,) = struct.unpack("<Q", content[:8])
    assert len(content) > 8 + header
    content[-1] ^= 1
    path.write_bytes(content)


def fitted(folder: Path) -> FittedCheckpoint:
    checkpoint = read_checkpoint(folder)
    return fit_class(checkpoint, {"class_name": checkpoint.class_name})


def verdict(folder: Path) -> Verdict:
    return of_transformers(fitted(folder))


def loads(folder: Path) -> bool:
    """Return True if transformers itself loads every tensor of ``folder`` and draws none."""
    named = json.loads((folder / "config.json").read_text())["architectures"][0]
    try:
        _, info = getattr(transformers, named).from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (ValueError, RuntimeError, AttributeError, KeyError):
        return False
    return not any(info.values())
