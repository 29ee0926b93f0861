#!/usr/bin/env bash
# Guess: an experiment file's `override /hydra/launcher: far` replaces the primary config's launcher, as it does with other
# groups.
# Instead: if the primary config's defaults list holds `override hydra/launcher: near`, near stays, without a word, and the rest
# of the experiment is applied. Without that line far is taken.
# Seen with hydra-core 1.3.8. Concerns whoever sets a default launcher, sweeper or logging and has experiments that want another.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps hydra-core==1.3.8 omegaconf==2.3.1 antlr4-python3-runtime==4.9.3 PyYAML==6.0.3 packaging==26.3
cat > "$work/show.py" <<'P'
import os
import pathlib

from hydra import compose, initialize_config_dir

conf = pathlib.Path(os.environ["CONF"])
files = {
    "hydra/launcher/near.yaml": "place: near",
    "hydra/launcher/far.yaml": "place: far",
    "data/small.yaml": "size: 1",
    "data/large.yaml": "size: 9",
    "experiment/mine.yaml": "# @package _global_\ndefaults:\n- override /hydra/launcher: far\n- override /data: large\nseen: true",
    "with_override.yaml": "defaults: [{data: small}, {experiment: null}, {override hydra/launcher: near}]",
    "without.yaml": "defaults: [{data: small}, {experiment: null}]",
}
for name, text in files.items():
    path = conf / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
got = {}
with initialize_config_dir(str(conf), version_base=None):
    for primary in ("with_override", "without"):
        cfg = compose(primary, overrides=["experiment=mine"], return_hydra_config=True)
        got[primary] = cfg.hydra.launcher.place
        print(f"{primary}: launcher {got[primary]}, data size {cfg.data.size}, experiment seen: {cfg.seen}")
        assert cfg.data.size == 9 and cfg.seen
assert got["without"] == "far"
assert got["with_override"] == "near", "the experiment's launcher is no longer dropped"
P
CONF="$work/conf" "$work/venv/bin/python" "$work/show.py"
