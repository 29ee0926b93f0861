#!/usr/bin/env bash
# Guess: autoawq's grid with zero points covers a group's range, so at 4 bits a weight is off by half a step at most.
# Instead: the step comes from max - min, but the zero point is cut to 0..15, so the grid always holds 0 and may end before the
# range begins: all of 1.0, 1.03, ..., 1.5 come back as 0.5, and all of -1.5, ..., -1.0 as -0.5, without a warning.
# Seen with autoawq 0.2.9 (discontinued), torch 2.13.0. Concerns groups of weights of one sign that lie off zero.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0 zstandard==0.25.0
"$work/venv/bin/pip" install -q --no-deps autoawq==0.2.9
cat > "$work/show.py" <<'P'
import types

import torch
from awq.quantize.quantizer import AwqQuantizer

settings = types.SimpleNamespace(group_size=16, zero_point=True, w_bit=4)
offs = {}
for name, low, high in (("around zero", -0.25, 0.25), ("above zero", 1.0, 1.5), ("below zero", -1.5, -1.0)):
    weights = torch.linspace(low, high, 16).reshape(1, -1)
    rounded = AwqQuantizer.pseudo_quantize_tensor(settings, weights.clone())[0]
    offs[name] = float((rounded - weights).abs().max())
    print(f"{name}, {low} to {high}: comes back as {sorted({round(value, 3) for value in rounded[0].tolist()})}")
assert offs["around zero"] < 0.02
assert offs["above zero"] > 0.9 and offs["below zero"] > 0.9, "such groups no longer collapse"
P
"$work/venv/bin/python" "$work/show.py" 2>"$work/log" || { cat "$work/log"; exit 1; }
