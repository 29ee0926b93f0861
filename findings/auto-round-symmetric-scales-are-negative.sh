#!/usr/bin/env bash
# Guess: the scales of a symmetric integer grid are positive, as those of GPTQ, AWQ and compressed-tensors are.
# Instead: AutoRound gives a group whose largest weight is positive a negative scale, so that this weight gets the one code that
# there is more below zero than above. About half of all scales are negative; a logarithm or a maximum of them is wrong.
# Seen with auto-round 0.16.1, torch 2.13.0. Concerns readers of its checkpoints.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 auto-round==0.16.1
cat > "$work/show.py" <<'P'
import torch
from auto_round.data_type import get_quant_func

quantize, _ = get_quant_func("int", 4, True, True)
weight = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
restored, scale, _ = quantize(weight, bits=4, group_size=-1)
largest = weight.gather(1, weight.abs().argmax(dim=1, keepdim=True))
negative = float((scale < 0).float().mean())
print(f"{negative:.0%} of 1,000 scales are negative")
print(f"those of rows whose largest weight is positive: {bool(((scale < 0) == (largest > 0)).all())}")
assert 0.4 < negative < 0.6, "scales are positive now"
assert ((scale < 0) == (largest > 0)).all()
assert torch.allclose(restored, weight, atol=0.5)
P
"$work/venv/bin/python" "$work/show.py" 2>"$work/log" || { cat "$work/log"; exit 1; }
