#!/usr/bin/env bash
# Guess: auto-gptq's symmetric grid reaches from -max|w| to max|w| of a group, whatever the signs of its weights.
# Instead: if no weight of the group is negative, the grid ends at half of the largest one, and everything above is clipped: at 4 bits
# the largest weight of 0.1, 0.2, ..., 1.6 comes back near half its value. Mixed signs are right.
# Seen with auto-gptq 0.7.1 (its quantizer.py alone; the package does not import on transformers 5), torch 2.13.0. Concerns weights
# that are all positive in a group, as with small groups or after a rectified parametrization.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.1
BUILD_CUDA_EXT=0 "$work/venv/bin/pip" install -q --no-deps auto-gptq==0.7.1
cat > "$work/show.py" <<'P'
import importlib.util
import pathlib

import torch

folder = pathlib.Path(importlib.util.find_spec("auto_gptq").origin).parent
spec = importlib.util.spec_from_file_location("quantizer", folder / "quantization" / "quantizer.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)


def rounded(weights: torch.Tensor) -> torch.Tensor:
    grid = module.Quantizer()
    grid.configure(4, perchannel=True, sym=True, mse=False)
    grid.find_params(weights, weight=True)
    return grid.quantize(weights)


positive = torch.linspace(0.1, 1.6, 16).reshape(1, -1)
mixed = positive.clone()
mixed[0, 0] = -0.1
for name, weights in (("all positive", positive), ("one negative", mixed)):
    print(f"{name}: largest weight {weights.max():.2f}, rounded {rounded(weights).max():.2f}")
assert rounded(positive).max() < 0.9, "positive groups are no longer clipped at half of their range"
assert rounded(mixed).max() > 1.3
P
"$work/venv/bin/python" "$work/show.py"
