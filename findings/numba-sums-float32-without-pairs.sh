#!/usr/bin/env bash
# Guess: a.sum() and numpy.mean(a) of a float32 array mean the same inside a jitted function as outside, up to the last digits.
# Instead: compiled, values are added one after the other into a float32, where NumPy adds in pairs: 2^25 ones sum to 2^24, with
# mean 0.5, also with the default fastmath=False.
# Seen with numba 0.68.1, numpy 2.4.6. Concerns means of errors, losses or pixels over many values.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps numba==0.68.1 llvmlite==0.50.0 numpy==2.4.6
cat > "$work/show.py" <<'P'
import numba
import numpy


@numba.njit
def compiled(values):
    return values.sum(), numpy.mean(values)


ones = numpy.ones(2**25, dtype=numpy.float32)
total, mean = compiled(ones)
print(f"{ones.size} ones: NumPy's sum {ones.sum():.0f}, mean {ones.mean()}; compiled sum {total:.0f}, mean {mean}")
assert ones.sum() == 2**25 and ones.mean() == 1
assert total == 2**24 and mean == 0.5, "compiled sums are now as exact as NumPy's"
P
"$work/venv/bin/python" "$work/show.py"
