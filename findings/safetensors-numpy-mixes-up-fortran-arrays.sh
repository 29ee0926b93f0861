#!/usr/bin/env bash
# Guess: safetensors.numpy.save keeps an array's values whatever its layout in memory, as numpy.save does.
# Instead: an array in Fortran order, such as a transposed one, or a strided slice is written byte after byte under its logical
# shape: it loads in the right shape with values in wrong places, without an error.
# Seen with safetensors 0.8.0, numpy 2.4.6 (reported to its authors: issue 825). Concerns statistics and weights kept with numpy.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps safetensors==0.8.0 numpy==2.4.6
cat > "$work/show.py" <<'P'
import numpy
from safetensors.numpy import load, save

rows = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
layouts = {
    "C order": rows,
    "Fortran order": numpy.asfortranarray(rows),
    "every second column": numpy.repeat(rows, 2, axis=1)[:, ::2],
}
kept = {}
for name, array in layouts.items():
    back = load(save({"a": array}))["a"]
    kept[name] = bool(numpy.array_equal(back, array))
    print(f"{name}: {array.tolist()} loads as {back.tolist()}")
assert kept["C order"]
assert not kept["Fortran order"] and not kept["every second column"], "other layouts are now written right"
P
"$work/venv/bin/python" "$work/show.py"
