"""Forecast the measurements of a search without running it."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.search.cells import Subject
from launch.search.driver import budgets_of
from launch.search.forecast import predicted
from tests.launch.search.asking import SEARCH, question

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = (ROOT / "docs" / "search.md").read_text()
with (ROOT / "docs" / "tables" / "search_units.csv").open() as table:
    BY_UNIT = sorted({row["command"] for row in csv.DictReader(table)})
COMMANDS = [*re.findall(r"^    (python -m mmq_sweeps -m .*)$", DOCUMENT, flags=re.MULTILINE), *BY_UNIT]


def test_qwen_is_planned_without_weights() -> None:
    told = forecast(
        "hydra/sweeper=budget", "hydra.sweeper.max_bpw=[4.5,5]", "hydra.sweeper.granularity=unit",
        "model=qwen2_5_vl_7b", "task=scenes_vqa", "method=gptq,awq", "bits=2,3,4,8",
    )  # fmt: skip
    # Attention and MLP of 32 blocks of vision and 28 of language, each by two methods at four widths.
    assert told["axes"] == 2 * (32 + 28)
    assert told["options"] == 8 * told["axes"]
    assert told["assignments"] == 8 ** told["axes"]
    assert [budget["bpw"] for budget in told["budgets"]] == [4.5, 5.0]
    assert told["bpw"]["full_precision"] == 16
    assert told["budgets"][0]["size_bytes"] == int(4.5 * told["parameters"]) // 8
    assert told["cells"] == sum(stage["cells"] for stage in told["stages"].values()) < 1000


def test_a_search_measures_at_most_what_was_told(searched: tuple[Path, dict]) -> None:
    folder, told = searched
    (path,) = folder.glob("runs/sweeps/*/search.json")
    batches = json.loads(path.read_text())["batches"]
    most = forecast(*SEARCH, "task.limit=24", "calibration.samples=16")
    for stage, counted in most["stages"].items():
        own = [batch for batch in batches if batch["stage"] == stage]
        assert sum(batch["cells"] for batch in own) <= counted["cells"]
        assert sum(batch["items"] for batch in own) <= counted["items"]
    assert most["grid"] == {"cells": 27, "items": 27 * 24}
    assert told["cost"]["items"] <= most["items"]


def test_a_person_is_told_that_nothing_was_run(command: Callable, tmp_path: Path) -> None:
    done = command("-m", "hydra/sweeper=budget", "hydra.sweeper.max_gb=0.0006", "method=rtn", "bits=3,4,8", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "tiny_blip2 on scenes_caption: rtn; 27 assignments, 3 choices, one a part" in done.stdout
    assert "max_gb=0.0006" in done.stdout
    assert "dry run: nothing was run, submitted or written" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_the_plan_in_the_documents_is_what_is_printed(command: Callable) -> None:
    (asked,) = re.findall(r"^    python -m launch (plan .*)$", DOCUMENT, flags=re.MULTILINE)
    head, _, *shown = (ROOT / "benchmarks" / "output" / "search_plan.txt").read_text().splitlines()
    assert head == f"# python -m launch {asked}"
    done = command(*asked.split(), module="launch")
    assert done.returncode == 0, done.stderr
    assert [line.rstrip() for line in done.stdout.splitlines()] == shown


@pytest.mark.parametrize("written", COMMANDS)
def test_every_command_of_the_documents_plans(written: str) -> None:
    told = forecast(*shlex.split(written)[4:])
    assert told["items"] < told["grid"]["items"]


def forecast(sweeper: str, budget: str, *arguments: str) -> dict[str, Any]:
    """Return the output of ``python -m launch plan ARGUMENT ... --json``, computed in this process."""
    assert sweeper == "hydra/sweeper=budget"
    subject = Subject.of(question(*arguments, budget=budget))
    return predicted(subject, budgets_of(subject))
