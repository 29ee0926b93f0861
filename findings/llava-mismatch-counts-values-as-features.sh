#!/usr/bin/env bash
# Guess: LLaVA's error "Image features and image tokens do not match" compares two counts of the same thing, so that their
# quotient tells what is wrong.
# Instead: the features are counted in values: an image that fills 4 places, 16 wide, given 3, is reported as "tokens: 3,
# features: 64". With LLaVA-1.5 it would read 575 and 2359296 for one missing place.
# Seen with transformers 5.23.0, torch 2.13.0. Concerns whoever looks for the missing placeholder, or parses the message.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0
cat > "$work/show.py" <<'P'
import re

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
config = LlavaConfig(
    vision_config=CLIPVisionConfig(image_size=8, patch_size=4, **small),
    text_config=LlamaConfig(vocab_size=40, **small),
    image_token_index=38,
)
model = LlavaForConditionalGeneration(config).eval()
image = torch.zeros(1, 3, 8, 8)
print("4 places:", tuple(model(input_ids=torch.tensor([[38, 38, 38, 38, 2]]), pixel_values=image).logits.shape))
try:
    model(input_ids=torch.tensor([[38, 38, 38, 2]]), pixel_values=image)
    raise SystemExit("3 places are taken")
except ValueError as error:
    print(f"3 places: {error}")
    tokens, features = map(int, re.findall("[0-9]+", str(error)))
assert tokens == 3
assert features == 4 * 16, "features are no longer counted as values"
P
"$work/venv/bin/python" "$work/show.py"
