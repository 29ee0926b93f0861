"""A model without a yaml, given on the command line: the documentation's example, and errors for missing settings."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from mmq_sweeps.config.model_catalog import model_names
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError
from tests.conftest import SMALL

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "mmq_sweeps" / "models" / "embedded" / "tiny_blip2"
VISION = "model.parts.vision={module: [vision_model], blocks: [encoder.layers], attention: [self_attn], mlp: [mlp]}"
GIVEN = ("model=custom", f"model.checkpoint={EMBEDDED}", "model.class_name=Blip2ForConditionalGeneration")


def test_the_example_of_the_documentation(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    example = re.search(r"<!-- custom -->\n```sh\npython -m mmq_sweeps (.*?)```", page, flags=re.DOTALL)
    assert example is not None
    shutil.copytree(EMBEDDED, tmp_path / "my_blip2")
    done = command(*shlex.split(example[1].replace("\\\n", " ")), *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["cells"][-1]
    assert (row["model"], row["task"], row["method"]) == ("custom", "scenes_vqa", "rtn")
    assert row["bits"] == {"vision": "3", "language": "3"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model=custom"],
            r"model.checkpoint, model.class_name: no value; give model.checkpoint=VALUE model.class_name",
        ),
        ([*GIVEN], r"model.parts: custom names none; give its parts, for instance 'model.parts.vision=\{module"),
        ([*GIVEN, "model.parts.vision.module=[vision_model]"], r"model.parts.vision.blocks=\[\]: names no path"),
        ([*GIVEN, VISION, "component=language"], "Unknown part 'language'. Choose vision, the parts of custom"),
    ],
)
def test_what_is_not_given(overrides: list[str], message: str, composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(ConfigError, match=message):
        plan([composed(*overrides)])


def test_it_is_no_model_before_it_is_given_one() -> None:
    assert "custom" not in model_names()
    assert "blip2_opt_2_7b" in model_names()
