#!/usr/bin/env bash
# Guess: Blip2VisionModel refuses an image of another size than its config's, or interpolates its position table on request only.
# Instead: a smaller image is taken, with the table cut after its first entries: at 4x4 patches instead of 8x8 the second row of
# patches gets the positions of the first row's second half. CLIP's vision model refuses it; both refuse a larger one.
# Seen with transformers 5.23.0, torch 2.13.0. Concerns processors whose size does not fit the checkpoint.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0
cat > "$work/show.py" <<'P'
import torch
from transformers import Blip2VisionConfig, Blip2VisionModel, CLIPVisionConfig, CLIPVisionModel

small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
small.update(image_size=16, patch_size=2)
image = torch.zeros(1, 3, 8, 8)
torch.manual_seed(0)
model = Blip2VisionModel(Blip2VisionConfig(**small)).eval()
torch.nn.init.normal_(model.embeddings.position_embedding)
embedded = model.embeddings(image)[0]
patch = model.embeddings(torch.zeros(1, 3, 16, 16))[0, 1:] - model.embeddings.position_embedding[0, 1:]
positions = embedded[1:] - patch[0]
matching = [int((model.embeddings.position_embedding[0, 1:] - place).norm(dim=1).argmin()) for place in positions]
print(f"trained on 8 rows of 8 patches, given 4 of 4: positions used {matching}")
assert matching == list(range(16)), "smaller images no longer get the first positions"
assert model(image).last_hidden_state.shape[1] == 17
try:
    CLIPVisionModel(CLIPVisionConfig(**small))(image)
    raise SystemExit("CLIP takes it too")
except ValueError as error:
    print(f"CLIP: {error}")
P
"$work/venv/bin/python" "$work/show.py"
