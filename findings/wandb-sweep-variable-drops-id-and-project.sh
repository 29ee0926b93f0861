#!/usr/bin/env bash
# Guess: what wandb.init() is told by argument wins over the environment, as project= does over WANDB_PROJECT.
# Instead: with WANDB_SWEEP_ID set, even offline and without an agent, both arguments are dropped but for two warnings: the run
# gets a random id, and not the project that was asked for.
# Seen with wandb 0.31.0. Concerns programs with run ids of their own under an agent, or in a shell with that variable.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q wandb==0.31.0
cat > "$work/show.py" <<'P'
import os
import sys

import wandb

sweep = os.environ.get("WANDB_SWEEP_ID")
with wandb.init(mode="offline", id="mine", project="papers", dir=sys.argv[1]) as run:
    print(f"WANDB_SWEEP_ID={sweep}: asked for 'mine' in 'papers', got {run.id!r} in {run.project!r}")
    kept = [run.id == "mine", run.project == "papers"]
assert kept == ([False, False] if sweep else [True, True]), "the arguments are kept now"
P
mkdir "$work/runs"
export WANDB_SILENT=true WANDB_PROJECT=of-the-environment
"$work/venv/bin/python" "$work/show.py" "$work/runs"
WANDB_SWEEP_ID=abc12345 "$work/venv/bin/python" "$work/show.py" "$work/runs"
