"""A user's own yaml, as docs/tasks.md shows it, for JSON lines and a folder of pictures: from the command to the record."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.data.scenes import Scenes
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.store.store import Store
from tests.data.hub_folders import write_lines

Composed = Callable[..., DictConfig]
DRAWN = {"samples": 3, "seed": 0, "batch_size": 2}
Command = Callable[..., subprocess.CompletedProcess[str]]
RUN = ("--config-dir=own", "task=mine", "model=tiny_llava", "tracker=none", "calibration.samples=2", "--json")
# Pictures of each row, the last of which has none.
SHOWN = (1, 2, 1, 0)


def rows(folder: Path, split: str, drawn: str) -> list[dict[str, Any]]:
    found = []
    scenes = iter(Scenes(drawn, sum(SHOWN)))
    for place, count in enumerate(SHOWN):
        own = [next(scenes) for _ in range(count)]
        names = [f"pictures/{split}-{place}-{number}.png" for number in range(count)]
        for example, name in zip(own, names, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            example.image.save(folder / name)
        asked = own[0].questions[0] if own else None
        found.append(
            {
                "nr": place,
                "picture": names,
                "question": asked.question if asked else "is there a <image>?",
                "answer": list(asked.answers) if asked else ["no"],
            }
        )
    return found


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Write the page's yaml and a data set for it under ``tmp_path``, where the command runs; return the data's folder."""
    page = Path(__file__).parents[2].joinpath("docs", "tasks.md").read_text()
    (yaml,) = re.findall(r"```yaml\n# own/task/mine.yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "own" / "task").mkdir(parents=True)
    (tmp_path / "own" / "task" / "mine.yaml").write_text(yaml)
    folder = tmp_path / "data" / "mine"
    for split, drawn in (("test", "evaluation"), ("train", "calibration")):
        write_lines(folder, split, rows(folder, split, drawn))
    return folder


def test_a_yaml_of_ones_own_from_the_command_to_the_record(command: Command, mine: Path, tmp_path: Path) -> None:
    done = command("method=gptq", "bits=3", "component=language", *RUN)
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)["cells"]
    assert [cell["status"] for cell in cells] == ["done"] * 2
    store = Store.open(tmp_path / "runs")
    assert [[item["id"] for item in store.items(cell["id"])] for cell in cells] == [["0", "1", "2", "3"]] * 2
    moved = tmp_path / "elsewhere"
    shutil.move(mine, moved)
    again = command("method=gptq", "bits=3", "component=language", *RUN, f"task.data.path={moved}")
    assert json.loads(again.stdout)["cells"] == cells, again.stderr
    assert again.stderr == "", "nothing is run again"


@pytest.mark.parametrize(
    ("changed", "overrides", "message"),
    [
        ({"picture": "pictures/none.png"}, [], "row 1 of data/mine, split test, data/mine/pictures/none.png: missing"),
        (
            {"nr": 0},
            [],
            "two items have the id '0', of row 0 of data/mine, split test and row 1 of data/mine, split test",
        ),
        ({"answer": {"a": 1}}, [], '1: one of its right texts is {"a": 1}, not text'),
        ({"answer": []}, [], "1: it has no right text"),
        ({}, ["model=tiny_blip2"], "1: it has 2 images, and the prompt is for one (task.image_prompt is null"),
        ({}, ["task.data.image=image"], "image=image: there is no such column; the columns there: nr, picture"),
        ({}, ["task.split=val"], "split=val: there is no such split; the splits there: test, train"),
        ({}, ["task.image_prompt=<img>"], "has it 0 times; give the text in it that stands for the image, or null"),
        ({}, ["task.calibration_split=test"], "3 calibration samples are also evaluated in task.split=test (0, 2, 1)"),
    ],
)
def test_a_row_that_cannot_be_is_named_before_any_cell(
    composed: Composed,
    mine: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    overrides: list[str],
    message: str,
) -> None:
    lines = [json.loads(line) for line in (mine / "test.jsonl").read_text().splitlines()]
    lines[1] |= changed
    write_lines(mine, "test", lines)
    monkeypatch.chdir(mine.parents[1])
    model = [override for override in overrides if override.startswith("model=")] or ["model=tiny_llava"]
    config = composed(*model)
    OmegaConf.set_struct(config, False)
    config.task = OmegaConf.load("own/task/mine.yaml")
    config.merge_with_dotlist([override for override in overrides if override not in model])
    with pytest.raises((ValueError, ConfigError), match=re.escape(message)):
        build("task", next(iter(plan([config]).configs.values()))["task"]).check([DRAWN], Path("cache"))
