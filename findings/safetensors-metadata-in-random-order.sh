#!/usr/bin/env bash
# Guess: the same tensors and metadata, saved twice, give the same file, since tensors are written in a fixed order.
# Instead: the keys of the metadata are written in an order drawn at each save: contents are equal, checksums are not. With one
# key or none files are equal.
# Seen with safetensors 0.8.0. Concerns stores that are addressed by digest, caches, and comparisons of two exports byte by byte.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps safetensors==0.8.0 numpy==2.4.6
cat > "$work/show.py" <<'P'
import hashlib

import numpy
from safetensors.numpy import save

tensors = {"a": numpy.zeros(2), "b": numpy.ones(3)}
files = {}
for count in (0, 1, 8):
    metadata = {f"key{place}": "value" for place in range(count)}
    files[count] = {hashlib.sha256(save(tensors, metadata)).hexdigest() for _ in range(20)}
    print(f"keys of metadata: {count}; different files of 20 saves: {len(files[count])}")
assert len(files[0]) == len(files[1]) == 1
assert len(files[8]) > 1, "metadata now has a fixed order"
P
"$work/venv/bin/python" "$work/show.py"
