#!/usr/bin/env bash
# Guess: with `job: {gpu: ${defaults.gpu}}`, OmegaConf.update(c, "job.gpu.count", 3) changes one value: in the target, or in a
# copy of it.
# Instead: job.gpu is no interpolation any more and holds `count` alone. The target's other keys are gone from it, without an
# error, with and without force_add. job.gpu.memory was readable one line before.
# Seen with omegaconf 2.3.1. Concerns configs that share a section by interpolation and are then changed from code.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps omegaconf==2.3.1 antlr4-python3-runtime==4.9.3 PyYAML==6.0.3
cat > "$work/show.py" <<'P'
from omegaconf import OmegaConf

for force in (False, True):
    cfg = OmegaConf.create({"defaults": {"gpu": {"count": 1, "memory": 80}}, "job": {"gpu": "${defaults.gpu}"}})
    assert cfg.job.gpu.memory == 80
    OmegaConf.update(cfg, "job.gpu.count", 3, force_add=force)
    print(f"force_add={force}: job.gpu {dict(cfg.job.gpu)}, defaults.gpu {dict(cfg.defaults.gpu)}")
    assert dict(cfg.defaults.gpu) == {"count": 1, "memory": 80}
    assert dict(cfg.job.gpu) == {"count": 3}, "the target's other keys are no longer lost"
P
"$work/venv/bin/python" "$work/show.py"
