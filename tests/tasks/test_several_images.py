"""Items with several images and with none: the model's inputs, alone and in a batch, and refused settings."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from omegaconf import DictConfig

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.model_catalog import read_model
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.tasks.generation.inputs import new_tokens
from mmq_sweeps.tasks.generation.task import GenerationTask
from mmq_sweeps.tasks.generation.window import too_long
from tests.data.hub_folders import scenes, write_parquet
from tests.models.toys import write_checkpoint

Composed = Callable[..., DictConfig]
CALIBRATION = {"samples": 4, "batch_size": 4, "seed": 0}
COUNTS = (1, 2, 0, 1, 2, 0)
PARQUET = "{}-00000-of-00001.parquet"
IMAGES = "image_prompt=${oc.select:model.prompts.image,null}"


FAMILIES = ("tiny_llava", "qwen2_5_vl_3b", "smolvlm2_2_2b")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Return a loader of the embedded LLaVA, or of a family's toy with random weights and its own processor."""

    @functools.cache
    def made(name: str) -> LoadedModel:
        config = read_model(name)
        if name != "tiny_llava":
            folder = tmp_path_factory.mktemp(name)
            write_checkpoint(name, folder)
            config |= {"checkpoint": str(folder), "dtype": "float32"}
        with quiet_libraries():
            return load_model(config)

    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write rows with one image, two and none."""
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


def by_hand(loaded: LoadedModel, images: list[Any], text: str, generation: dict[str, Any]) -> str:
    """Return the answer to an item by transformers' own processor and ``generate``."""
    inputs: dict[str, Any] = dict(
        loaded.processor(images=[images] if images else None, text=[text], return_tensors="pt")
    )
    with torch.no_grad():
        tokens = new_tokens(loaded.model.generate(**inputs, **generation), inputs["input_ids"])
    return loaded.processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_those_of_the_processor_and_generate_by_hand(
    task: Callable[..., GenerationTask], model: Callable[[str], LoadedModel], name: str
) -> None:
    one, loaded = task(model=name), model(name)
    image = one.image_prompt
    assert image
    before, after = one.prompt.split(image)
    expected = {
        item.id: by_hand(
            loaded,
            item.example.images,
            before + image * count + after.replace("{question}", item.question),
            one.generation,
        )
        for item, count in zip(one.items, COUNTS, strict=True)
    }
    for size in (1, 6):
        assert replace(one, batch_size=size).predict(loaded, lambda done, total: None) == expected
    assert list(one.predict(loaded, lambda done, total: None)) == list(expected), "in the order of the rows"
    assert len(set(expected.values())) > 1
    assert not list(one.check_model(loaded))
    (calibrated,) = {
        len(batch["input_ids"]) for batch in one.calibration_batches(loaded, CALIBRATION | {"batch_size": 1})
    }
    assert calibrated == 1


def test_calibration_and_likelihoods_show_each_sample_its_own_images(
    task: Callable[..., GenerationTask], model: Callable[[str], LoadedModel]
) -> None:
    one, loaded = task("task.teacher_forced=true", "task.metrics=[log_likelihood]"), model("tiny_llava")
    batches = list(one.calibration_batches(loaded, CALIBRATION | {"samples": 6, "batch_size": 6}))
    assert sorted((len(batch["input_ids"]), len(batch.get("pixel_values", ()))) for batch in batches) == [
        (2, 0),
        (2, 2),
        (2, 4),
    ]
    texts = [replace(one, batch_size=size).predict(loaded, lambda done, total: None) for size in (1, 6)]
    assert list(texts[0]) == list(texts[1]) == [f"test/{row}" for row in range(6)]
    likely = [[json.loads(text)["log_likelihood"] for text in own.values()] for own in texts]
    assert likely[0] == pytest.approx(likely[1], abs=1e-4)


def test_the_window_counts_every_image(
    task: Callable[..., GenerationTask], model: Callable[[str], LoadedModel]
) -> None:
    one, loaded = task(), model("tiny_llava")
    lengths = {}
    for item in one.items:
        text = item.prompt_for(loaded.processor)
        tokens = dict(loaded.processor(images=item.example.images or None, text=text, return_tensors="pt"))["input_ids"]
        lengths[item.id] = tokens.shape[1] + one.generation["max_new_tokens"] - 1
    window = loaded.model.config.get_text_config()
    kept = window.max_position_embeddings
    try:
        window.max_position_embeddings = max(lengths.values()) - 1
        found = too_long(loaded, one.items, one.generation)
    finally:
        window.max_position_embeddings = kept
    assert set(found) == {item for item, length in lengths.items() if length == max(lengths.values())}
    assert set(found) <= {item.id for item, count in zip(one.items, COUNTS, strict=True) if count == 2}


def test_a_prompt_that_loses_the_second_image_is_refused(
    task: Callable[..., GenerationTask], model: Callable[[str], LoadedModel]
) -> None:
    one = task()
    for item in one._asked:
        object.__setattr__(item, "template", one.prompt)
    with pytest.raises(ValueError, match=r"item 'test/1' cannot be asked: The total number of <image> tokens"):
        list(one.check_model(model("tiny_llava")))


def test_models_that_take_one_image_refuse_others(task: Callable[..., GenerationTask], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"4 of 6 items cannot be used: test/1: it has 2 images, .*test/2: it has no images"
    ):
        task(model="tiny_blip2").check([], tmp_path)
    left = task("+task.allow_missing=true", model="tiny_blip2")
    left.check([], tmp_path)
    assert [item.id for item in left.items] == ["test/0", "test/3"]


def test_images_inside_a_table_are_told_apart_by_their_bytes(
    task: Callable[..., GenerationTask], folder: Path, tmp_path: Path
) -> None:
    one = task()
    one.check([CALIBRATION], tmp_path)
    assert [row[1] is None for row in one.samples(3)] == [False, False, True]
    width = one.samples(1)[0][1].width
    assert one.samples(2)[1][1].width == 2 * width, "several are shown side by side"
    shutil.copytree(folder, tmp_path / "same")
    shutil.copy(
        tmp_path / "same" / "data" / PARQUET.format("test"), tmp_path / "same" / "data" / PARQUET.format("train")
    )
    same = replace(one, data={**one.data, "path": str(tmp_path / "same")})
    with pytest.raises(ValueError, match=r"4 calibration samples are also evaluated in task.split=test \(train/"):
        same.check([CALIBRATION], tmp_path)


def test_a_damaged_image_inside_a_table_is_named_with_its_row(
    task: Callable[..., GenerationTask], folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "cut")
    path = str(tmp_path / "cut" / "data" / PARQUET.format("test"))
    rows = (
        datasets.Dataset.from_parquet(path).cast_column("images", datasets.List(datasets.Image(decode=False))).to_list()
    )
    rows[4]["images"][1]["bytes"] = rows[4]["images"][1]["bytes"][:-200]
    kinds = {"images": datasets.List(datasets.Image()), "question": datasets.Value("string")}
    kinds["answers"] = datasets.List(datasets.Value("string"))
    datasets.Dataset.from_list(rows, features=datasets.Features(kinds)).to_parquet(path)
    one = task()
    one = replace(one, data={**one.data, "path": str(tmp_path / "cut")})
    with pytest.raises(
        ValueError, match=rf"1 of 6 images cannot be used \(1 truncated\): row 4 of {tmp_path}/cut, split"
    ):
        one.check([CALIBRATION], tmp_path)
    left = replace(one, allow_missing=True)
    left.check([CALIBRATION], tmp_path)
    assert "test/4" not in [item.id for item in left.items]
    missing = left.notes()["missing"]
    assert (missing["images"], missing["items"]) == (1, 1)
    assert next(iter(missing["first"])).endswith("row 4 of " + f"{tmp_path}/cut, split test, images 1")


def test_retrieval_takes_one_image_each(composed: Composed, folder: Path, tmp_path: Path) -> None:
    config = composed(
        "model=tiny_blip2_itm", "task=scenes_retrieval", "task.data._target_=HubData", f"+task.data.path={folder}",
        "+task.data.image=images", "+task.data.question=null", "~task.data.seed", "task.split=test", "task.limit=null",
        "task.calibration_split=train", "tracker=none",
    )  # fmt: skip
    one = build("task", next(iter(plan([config]).configs.values()))["task"])
    with pytest.raises(
        ValueError, match=r"4 of 6 items cannot be used: test/1: it has 2 images, and texts are ranked for one"
    ):
        one.check([], tmp_path)
