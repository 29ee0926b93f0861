#!/usr/bin/env bash
# Guess: lmms-eval's aggregation of OCRBench gives the same score whenever it is given the same answers.
# Instead: it counts into a dict of its module that nothing resets, so that a second evaluation in a process scores the sum of both,
# above 1 at the end, and a bootstrap over its documents grows without bound. A process for each evaluation is right.
# Seen with lmms-eval 0.7.3. Concerns whoever evaluates several models, or several times, in one process.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q loguru==0.7.3
"$work/venv/bin/pip" install -q --no-deps lmms-eval==0.7.3
cat > "$work/show.py" <<'P'
import importlib.util
import pathlib
import sys
import types

root = pathlib.Path(importlib.util.find_spec("lmms_eval").origin).parent / "tasks"
# The package above imports torch; the module itself needs a single function of it.
for name in ("lmms_eval.tasks", "lmms_eval.tasks._task_utils"):
    sys.modules[name] = types.ModuleType(name)


def load(name: str, path: pathlib.Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


load("lmms_eval.tasks._task_utils.file_utils", root / "_task_utils" / "file_utils.py")
utils = load("ocrbench_utils", root / "ocrbench" / "utils.py")
answers = [{"question_type": "Regular Text Recognition", "score": 1}] * 500
args = types.SimpleNamespace(output_path=sys.argv[1])
scores = [utils.ocrbench_aggregate_accuracy(answers, args) for _ in range(3)]
print("the same 500 right answers of 1000, three times:", scores)
assert scores == [0.5, 1.0, 1.5], "the scores no longer add up"
P
"$work/venv/bin/python" "$work/show.py" "$work" 2> "$work/log" || { cat "$work/log"; exit 1; }
