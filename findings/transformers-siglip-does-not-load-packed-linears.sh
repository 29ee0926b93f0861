#!/usr/bin/env bash
# Guess: transformers loads linears that compressed-tensors has packed in any of its models, since the same file layout works for
# CLIP's vision tower.
# Instead: SigLIP's tower cannot be loaded. While it loads, transformers initializes each module of which a tensor is missing, and
# SigLIP's initialization reads the weight, which a packed linear does not have: AttributeError. CLIP's loads.
# Seen with transformers 5.23.0, compressed-tensors 0.20.1, torch 2.13.0. Concerns whoever packs the vision tower of PaliGemma.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.1
cat > "$work/show.py" <<'P'
import json
import os
import pathlib

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
settings = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": [],
    "config_groups": {"group_0": {"targets": ["re:.*(fc1|fc2)$"], "format": "pack-quantized", "weights": weights}},
}


def outcome(kind, config, folder):
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if not name.endswith((".fc1.weight", ".fc2.weight")):
            tensors[name] = value
            continue
        codes = torch.randint(-8, 8, value.shape, dtype=torch.int8)
        tensors[f"{name}_packed"] = pack_to_int32(codes, 4)
        tensors[f"{name}_scale"] = torch.full((len(value), 1), 0.01)
        tensors[f"{name}_shape"] = torch.tensor(value.shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "quantization_config": settings}))
    try:
        _, info = kind.from_pretrained(folder, output_loading_info=True)
    except AttributeError as error:
        return f"AttributeError: {error}"
    return "loads" if not any(info.values()) else f"loads with {info}"


folder = pathlib.Path(os.environ["FOLDER"])
clip = outcome(CLIPVisionModel, CLIPVisionConfig(**small, image_size=8, patch_size=4), folder / "clip")
siglip = outcome(SiglipVisionModel, SiglipVisionConfig(**small, image_size=8, patch_size=4), folder / "siglip")
print(f"CLIP's tower: {clip}")
print(f"SigLIP's tower: {siglip}")
assert clip == "loads"
assert siglip == "AttributeError: 'Linear' object has no attribute 'weight'", "SigLIP loads packed linears now"
P
FOLDER="$work" "$work/venv/bin/python" "$work/show.py" 2>"$work/log" || { cat "$work/log"; exit 1; }
