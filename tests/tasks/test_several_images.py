"""Items with several images and with none: what the model is given, alone and in a batch, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.model_catalog import read_model
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.tasks.generation import GenerationTask, _generated
from tests.data.hub_folders import scenes, write_parquet

Composed = Callable[..., DictConfig]
CALIBRATION = {"samples": 4, "batch_size": 4, "seed": 0}
COUNTS = (1, 2, 0, 1, 2, 0)
IMAGES = "image_prompt=${oc.select:model.prompts.image,null}"


@pytest.fixture(scope="module")
def llava() -> LoadedModel:
    with quiet_libraries():
        return load_model(read_model("tiny_llava"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with one image, two and none."""
    found = tmp_path_factory.mktemp("several")
    for split, named in (("test", "evaluation"), ("train", "calibration")):
        drawn = iter(scenes(sum(COUNTS), named))
        write_parquet(found, [[next(drawn) for _ in range(count)] for count in COUNTS], split)
    return found


@pytest.fixture
def task(composed: Composed, folder: Path) -> Callable[..., GenerationTask]:
    def made(*overrides: str, model: str = "tiny_llava") -> GenerationTask:
        own = [
            f"model={model}", "task=scenes_vqa", "task.data._target_=HubData", f"+task.data.path={folder}",
            "+task.data.image=images", "~task.data.seed", "task.split=test", "task.calibration_split=train",
            "task.limit=null", f"+task.{IMAGES}",
            "task.prompt=${model.prompts.ask}", "tracker=none", *overrides,
        ]  # fmt: skip
        config = composed(*own)
        return build("task", next(iter(plan([config]).configs.values()))["task"])

    return made


def test_texts_are_those_of_the_processor_and_generate_by_hand(
    task: Callable[..., GenerationTask], llava: LoadedModel
) -> None:
    one = task()
    by_hand = {}
    for item in one.items:
        images = item.example.images
        text = "USER: " + "<image>\n" * len(images) + f"{item.question} ASSISTANT:"
        inputs: dict[str, Any] = dict(llava.processor(images=images or None, text=text, return_tensors="pt"))
        with torch.no_grad():
            tokens = _generated(llava.model.generate(**inputs, **one.generation), inputs["input_ids"])
        by_hand[item.id] = llava.processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
    for size in (1, 2, 6):
        assert replace(one, batch_size=size).predict(llava, lambda done, total: None) == by_hand
    assert list(one.predict(llava, lambda done, total: None)) == list(by_hand), "in the order of the rows"
