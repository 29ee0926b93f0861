#!/usr/bin/env bash
# Guess: with `data=[train,extra]` on the command line hydra.runtime.choices names both, or Hydra refuses the second.
# Instead: both files are merged, and the group is missing in hydra.runtime.choices, as if it did not exist.
# ${hydra:runtime.choices.data} in a folder's name, and any record of what was chosen, lose it.
# Seen with hydra-core 1.3.8. Concerns tools that name, group or skip runs by their choices.
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
(conf / "data").mkdir(parents=True)
(conf / "data/train.yaml").write_text("images: 100\nsplit: train")
(conf / "data/extra.yaml").write_text("captions: 5\nsplit: extra")
(conf / "config.yaml").write_text("defaults: [{data: train}]")
named = []
with initialize_config_dir(str(conf), version_base=None):
    for override in ("data=extra", "data=[train,extra]"):
        cfg = compose("config", overrides=[override], return_hydra_config=True)
        named.append("data" in cfg.hydra.runtime.choices)
        print(f"{override}: {dict(cfg.data)}, named in the choices: {named[-1]}")
assert dict(cfg.data) == {"images": 100, "captions": 5, "split": "extra"}
assert named == [True, False], "a group with two options is now named among the choices"
P
CONF="$work/conf" "$work/venv/bin/python" "$work/show.py"
