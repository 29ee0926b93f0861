"""``docs/cluster.md``: the commands for newcomers run as written, in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import command_environment
from tests.launch.slurm.warm import EVERY_COMMAND, NODE

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"<!-- on the cluster -->\n```sh\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.usefixtures("cluster")
def test_from_a_profile_to_figures(tmp_path: Path) -> None:
    for name in ("mmq_sweeps", "launch", "analysis", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    # "python" is that of the tests, as in an activated environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    paths = os.pathsep.join([str(tmp_path), str(NODE)])
    environment = command_environment(PYTHONPATH=paths, PATH=path, WANDB_MODE="offline", **EVERY_COMMAND)
    assert len(BLOCKS) == 6
    told = []
    for block in BLOCKS:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (block, done.stdout, done.stderr)
        told.append(done.stdout)
    assert told[0] == (ROOT / "conf" / "hydra" / "launcher" / "example_cluster.yaml").read_text()
    assert "gptq" in told[2]
    assert "ended" in told[4]
    assert sorted((tmp_path / "figures").glob("*.png"))


def test_the_profile_is_shown_as_it_is() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    assert shown == (ROOT / "conf" / "hydra" / "launcher" / "example_cluster.yaml").read_text()
