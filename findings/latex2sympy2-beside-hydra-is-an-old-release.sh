#!/usr/bin/env bash
# Guess: lmms-eval cannot be installed beside Hydra: it requires latex2sympy2, whose release 1.9.1 wants antlr4-python3-runtime 4.7.2,
# and Hydra wants 4.9.*.
# Instead: pip installs both without a word. It goes back to latex2sympy2 1.5.4, the newest that takes any antlr4 from 4.7.2, whose
# grammar was made by 4.7.2: whenever it is used, it prints two lines about that on standard output.
# Seen with latex2sympy2 1.5.4 and 1.9.1, hydra-core 1.3.2, pip 25.3. Concerns programs that parse what such a command prints.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pip==25.3
newest() {
    "$work/venv/bin/pip" install --dry-run latex2sympy2==1.9.1 hydra-core==1.3.2
}
if newest > "$work/log" 2>&1; then
    echo "the newest release is installed beside Hydra"
    exit 1
fi
grep "depends on antlr4" "$work/log"
"$work/venv/bin/pip" install -q latex2sympy2==1.* hydra-core==1.3.2
cat > "$work/show.py" <<'P'
from importlib.metadata import version

print("beside Hydra, pip took latex2sympy2", version("latex2sympy2"), "and antlr4", version("antlr4-python3-runtime"))
from latex2sympy2 import latex2sympy  # noqa: E402

print(latex2sympy(r"\frac{1}{2}"))
P
"$work/venv/bin/python" "$work/show.py" 2> /dev/null | tee "$work/told"
grep -q "latex2sympy2 1.5.4" "$work/told"
grep -q "code versions disagree" "$work/told"
