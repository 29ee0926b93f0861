"""The examples of docs/export.md run as written: three models exported at mixed widths, and a script that reloads them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmq_sweeps.export.formats.names import FORMATS
from mmq_sweeps.store.store import Store
from tests.commands import run_forked
from tests.conftest import command_environment

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "export.md").read_text()
EXAMPLES = "docs/examples"
COMMANDS = [
    shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()
]
# The figure of each folder that the page shows.
(SHOWN,) = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)
FIGURES = {line.split(": ")[0]: line.split(": ")[1].split() for line in SHOWN.splitlines()}
# An export whose folder is verified in a new Python instead of a fork.
VERIFIED_ANEW = """
import subprocess, sys
from mmq_sweeps.export import verify
from mmq_sweeps.export.__main__ import main
verify.subprocess = subprocess
main(sys.argv[1:])
"""
# Between processors the last digits of a matrix product may differ, and with them a word of an answer.
NEAR = 0.5


def run(arguments: list[str], folder: Path, anew: bool = False) -> str:
    """Run ``python ...`` as the page says, a script in a new Python if ``anew``; return its output."""
    python, option, *rest = arguments
    assert python == "python"
    if anew and rest[0] == "mmq_sweeps.export":
        told = run_forked("-c", [VERIFIED_ANEW, *rest[1:]], folder, command_environment())
    elif anew:
        told = subprocess.run(
            [sys.executable, option, *rest],
            cwd=folder, env=command_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
    elif option == "-m":
        told = run_forked(rest[0], [*rest[1:], *(["tracker=none"] * (rest[0] == "mmq_sweeps"))], folder, os.environ)
    else:
        told = run_forked("-c", [(folder / option).read_text(), *rest], folder, command_environment())
    assert told.returncode == 0, told.stderr
    return told.stdout


@pytest.mark.parametrize("out", FIGURES)
def test_a_model_is_exported_reloaded_and_evaluated_without_our_code(out: str, tmp_path: Path) -> None:
    shutil.copytree(DOCS / "examples", tmp_path / EXAMPLES)
    (exporting,) = [command for command in COMMANDS if command[-1] == out and "--out" in command]
    store = exporting[exporting.index("--source") + 1]
    (measuring,) = [command for command in COMMANDS if f"store.dir={store}" in command]
    (reloading,) = [command for command in COMMANDS if command[1:] == [f"{EXAMPLES}/reload.py", out]]
    # For one export, new processes verify and reload it.
    anew = out == next(iter(FIGURES))
    run(["python", f"{EXAMPLES}/draw.py"], tmp_path)
    run(measuring, tmp_path)
    run(exporting, tmp_path, anew)
    name, shown = FIGURES[out]
    record = next(one for one in Store.reading(tmp_path / store).records() if not one.baseline)
    widths = {rule["bits"] for part in record.cell["parts"].values() for rule in part.get("rules", [part])}
    assert len(widths) > 1
    assert run(reloading, tmp_path, anew) == f"{out}: {name} {record.metrics[name]['value']:.4f}\n"
    assert abs(record.metrics[name]["value"] - float(shown)) < NEAR


def test_the_script_that_reloads_has_none_of_our_code() -> None:
    script = (DOCS / "examples" / "reload.py").read_text()
    assert "mmq_sweeps" not in script
    assert "from_pretrained" in script


def test_every_format_has_a_line() -> None:
    for name in FORMATS:
        assert f"| `{name}` |" in PAGE
