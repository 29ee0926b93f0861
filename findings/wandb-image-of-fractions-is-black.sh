#!/usr/bin/env bash
# Guess: wandb.Image of a float array between 0 and 1 shows the picture, as matplotlib does with such an array.
# Instead: values are cut to whole bytes as they are: everything below 1 is black, and 256.0 starts again at 0, without a warning.
# Its documentation asks for 0 to 255.
# Seen with wandb 0.31.0, numpy 2.4.6. Concerns sample tables made from a processor's pixel values or from heat maps.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q wandb==0.31.0 numpy==2.4.6 pillow==13.0.0
cat > "$work/show.py" <<'P'
import numpy
import wandb

ramp = numpy.linspace(0.0, 0.99, 12).reshape(3, 4)
shown = {}
for name, pixels in (("fractions", ramp), ("bytes", (ramp * 255).astype(numpy.uint8)), ("up to 299", ramp * 302)):
    image = numpy.asarray(wandb.Image(numpy.stack([pixels] * 3, axis=-1)).image)
    shown[name] = image[..., 0].ravel().tolist()
    print(f"{name}: {shown[name]}")
assert shown["bytes"][-1] == 252
assert max(shown["fractions"]) == 0, "fractions are now scaled"
assert shown["up to 299"][-1] < shown["up to 299"][-3], "larger values no longer start again at 0"
P
"$work/venv/bin/python" "$work/show.py"
