#!/usr/bin/env bash
# Guess: in a filter of wandb-workspaces a quoted value is a value: Config("note") == "a=b" looks for a=b.
# Instead: = becomes ==, < becomes <= and > becomes >= in the whole text before it is parsed, inside the quotes as well: the
# filter looks for "a==b", and runs called lr=0.1 or <image> are not found. Only < and > bring a warning, about operators.
# Seen with wandb-workspaces 0.4.13. Concerns dashboards over names with such signs, as Hydra's overrides are.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q wandb-workspaces==0.4.13 wandb==0.31.0
cat > "$work/show.py" <<'P'
import warnings

import wandb_workspaces.reports.v2 as reports

warnings.simplefilter("ignore")
sent = {}
for value in ("plain", "lr=0.1", "<image>"):
    runset = reports.Runset(filters=f"Config('note') == '{value}'")
    sent[value] = runset._to_model().filters["filters"][0]["value"]
    print(f"asked for {value!r}, sent {sent[value]!r}")
assert sent["plain"] == "plain"
assert sent["lr=0.1"] == "lr==0.1" and sent["<image>"] == "<=image>=", "quoted values are now kept"
P
"$work/venv/bin/python" "$work/show.py"
