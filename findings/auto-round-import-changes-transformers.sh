#!/usr/bin/env bash
# Guess: importing AutoRound, to call its functions, leaves transformers as it is until a model is quantized.
# Instead: the import alone replaces from_pretrained of AutoModelForCausalLM and adds a kind of rotary
# embedding, for the whole process.
# Seen with auto-round 0.16.1, transformers 5.23.0, torch 2.13.0. Concerns whoever runs it beside measurements of other methods.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 auto-round==0.16.1
cat > "$work/show.py" <<'P'
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def state():
    return AutoModelForCausalLM.from_pretrained.__func__, sorted(ROPE_INIT_FUNCTIONS)


loader, kinds = state()
import auto_round  # noqa: E402, F401

loader_after, kinds_after = state()
print(f"from_pretrained is the same function: {loader is loader_after}")
print(f"kinds of rotary embeddings that came: {sorted(set(kinds_after) - set(kinds))}")
assert loader is not loader_after, "the loader is left alone now"
assert set(kinds_after) - set(kinds) == {"default"}, "no kind is added now"
P
"$work/venv/bin/python" "$work/show.py" 2>"$work/log" || { cat "$work/log"; exit 1; }
