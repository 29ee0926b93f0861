#!/usr/bin/env bash
# Guess: in a jitted function the difference of two uint8 pixels, 1 - 2, is 255 as in NumPy, or -1 as in Python.
# Instead: single values are widened to unsigned 64 bits first: it is 18446744073709551615, and so is its abs(). On whole arrays,
# in the same function, it is 255. No warning.
# Seen with numba 0.68.1, numpy 2.4.6. Concerns loops over images, masks or packed codes: one such pixel becomes the mean.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps numba==0.68.1 llvmlite==0.50.0 numpy==2.4.6
cat > "$work/show.py" <<'P'
import numba
import numpy


@numba.njit
def differences(left, right):
    return left[0] - right[0], abs(left[0] - right[0]), (left - right)[0]


one, two = numpy.array([1], dtype=numpy.uint8), numpy.array([2], dtype=numpy.uint8)
single, absolute, whole = differences(one, two)
print(f"compiled: values {single}, abs of it {absolute}, arrays {whole}; NumPy's arrays: {(one - two)[0]}")
assert whole == 255 == (one - two)[0]
assert single == absolute == 2**64 - 1, "single bytes are now subtracted otherwise"
P
"$work/venv/bin/python" "$work/show.py"
