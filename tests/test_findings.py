"""Scripts of ``findings/`` follow their form; they are not run here, since they install packages."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
INSTALLED = re.compile(r"pip\S* install (.*)")


def test_the_folder_holds_scripts_and_their_readme() -> None:
    assert SCRIPTS
    assert {path.name for path in FOLDER.iterdir()} == {"README.md", *(path.name for path in SCRIPTS)}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_readable_by_a_shell_and_pins_what_it_installs(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "set -euo pipefail" in text
    assert "mktemp -d" in text
    assert "mmq_sweeps" not in text
    installed = [word for line in INSTALLED.findall(text) for word in line.split() if not word.startswith("-")]
    assert installed
    assert all("==" in word for word in installed), installed
