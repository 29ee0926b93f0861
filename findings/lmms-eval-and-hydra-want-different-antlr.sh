#!/usr/bin/env bash
# Guess: a program that is configured by Hydra can require lmms-eval, too.
# Instead: pip finds no versions for both. lmms-eval requires latex2sympy2, which wants antlr4-python3-runtime 4.7.2; Hydra and
# OmegaConf want 4.9.*. None of lmms-eval's own modules, and few of its tasks, import latex2sympy2, so that installing it without
# its requirements (--no-deps), and what it does import by hand, works.
# Seen with lmms-eval 0.7.3, latex2sympy2 1.9.1, hydra-core 1.3.2, pip 25.3. Concerns whoever scores models from a Hydra program.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pip==25.3
"$work/venv/bin/pip" install -q --no-deps lmms-eval==0.7.3
"$work/venv/bin/python" - <<'P'
from importlib.metadata import requires

assert "latex2sympy2" in requires("lmms-eval"), "lmms-eval no longer requires latex2sympy2"
P
if "$work/venv/bin/pip" install --dry-run latex2sympy2==1.9.1 hydra-core==1.3.2 > "$work/log" 2>&1; then
    echo "pip finds versions for both"
    exit 1
fi
grep -A 8 "conflict" "$work/log"
grep -q "antlr4-python3-runtime" "$work/log"
