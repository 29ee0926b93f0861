#!/usr/bin/env bash
# Guess: generate() of a loaded BLIP-2 follows the folder's generation_config.json, as other models do.
# Instead: the file is read into model.generation_config, but generate() leaves the work to the language model inside, which has
# its own: with max_new_tokens 3 in the file 23 ids come back instead of 6.
# Seen with transformers 5.23.0, torch 2.13.0. Concerns whoever ships or edits that file for BLIP-2, or records it as what was
# used.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0
cat > "$work/show.py" <<'P'
import json
import os
import pathlib

import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration

small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
text = {"model_type": "opt", "vocab_size": 40, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
config = Blip2Config(
    vision_config={**small, "image_size": 8, "patch_size": 4},
    qformer_config={**small, "vocab_size": 40, "encoder_hidden_size": 16},
    text_config={**text, "word_embed_proj_dim": 16, "eos_token_id": 39},
    num_query_tokens=2,
    image_token_index=38,
)
torch.manual_seed(0)
folder = pathlib.Path(os.environ["FOLDER"])
Blip2ForConditionalGeneration(config).save_pretrained(folder)
(folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 3, "eos_token_id": 39}))
model = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
inputs = {"pixel_values": torch.zeros(1, 3, 8, 8), "input_ids": torch.tensor([[38, 38, 2]])}
left = model.generate(**inputs).shape[1]
told = model.generate(**inputs, max_new_tokens=3).shape[1]
print(f"the file says {model.generation_config.max_new_tokens} new tokens: {left} ids come back; told by argument: {told}")
assert model.generation_config.max_new_tokens == 3
assert left > told, "generate() now follows generation_config.json"
P
FOLDER="$work/model" "$work/venv/bin/python" "$work/show.py" 2>"$work/log" || { cat "$work/log"; exit 1; }
