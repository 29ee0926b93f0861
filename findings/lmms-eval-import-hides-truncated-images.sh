#!/usr/bin/env bash
# Guess: importing lmms-eval's tasks changes nothing for the rest of a program.
# Instead: from then on Pillow decodes a truncated file as if it were whole, its rest grey, and Python shows no warning of any kind.
# Seen with lmms-eval 0.7.3, pillow 13.0.0, torch 2.13.0. Concerns programs that read images of their own beside its tasks.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0 pillow==13.0.0
"$work/venv/bin/pip" install -q evaluate==0.4.6 loguru==0.7.3 tenacity==9.2.1 sacrebleu==2.6.0 pytz==2026.6 sympy==1.14.0
"$work/venv/bin/pip" install -q --no-deps lmms-eval==0.7.3
cat > "$work/show.py" <<'P'
import io
import warnings

from PIL import Image

file = io.BytesIO()
Image.effect_noise((64, 64), 50).save(file, "PNG")
half = file.getvalue()[: len(file.getvalue()) // 2]


def decoded() -> str:
    try:
        return f"decoded, {Image.open(io.BytesIO(half)).convert('L').size}"
    except OSError as error:
        return f"refused: {error}"


def shown() -> bool:
    with warnings.catch_warnings():
        return not any(action == "ignore" and kind is Warning and not text for action, text, kind, _, _ in warnings.filters)


before = decoded(), shown()
import lmms_eval.tasks  # noqa: E402, F401

after = decoded(), shown()
print("half a file, and whether warnings are shown, before:", before)
print("after the import:", after)
assert before[0].startswith("refused") and before[1]
assert after[0].startswith("decoded"), "a truncated file is refused again"
assert not after[1], "warnings are shown again"
P
"$work/venv/bin/python" "$work/show.py"
