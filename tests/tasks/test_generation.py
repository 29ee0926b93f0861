"""Captioning and answering: the prompts, the refusals, and independence of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import DictConfig

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.model_catalog import read_model
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.data.scenes import Example, Scenes
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.tasks.generation.inputs import new_tokens
from mmq_sweeps.tasks.generation.task import GenerationTask

Composed = Callable[..., DictConfig]
CALIBRATION = {"samples": 6, "batch_size": 4, "seed": 0}


def task(composed: Composed, name: str, *overrides: str) -> GenerationTask:
    config = composed(f"task={name}", "task.limit=12", *overrides)
    return build("task", next(iter(plan([config]).configs.values()))["task"])


@pytest.mark.parametrize("name", ["scenes_caption", "scenes_vqa"])
def test_a_batch_size_changes_no_text(composed: Composed, loaded: LoadedModel, name: str) -> None:
    one = task(composed, name)
    texts = [replace(one, batch_size=size).predict(loaded, lambda done, total: None) for size in (1, 5, 12)]
    assert len(texts[0]) == 12
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("model", ["tiny_blip2", "tiny_llava"])
def test_texts_are_those_of_generate(composed: Composed, model: str) -> None:
    """Finished rows leave the batch on the way, and every text is still the text of transformers."""
    with quiet_libraries():
        loaded = load_model(read_model(model))
    for name in ("scenes_caption", "scenes_vqa"):
        one = task(composed, name, f"model={model}")
        inputs = dict(
            loaded.processor(
                images=[[item.example.image] for item in one.items],
                text=[item.prompt_for(loaded.processor) for item in one.items],
                return_tensors="pt",
                padding=True,
                padding_side="left",
            )
        )
        for beams in (1, 3):
            asked = replace(one, generation={**one.generation, "num_beams": beams})
            with torch.no_grad():
                tokens = new_tokens(loaded.model.generate(**inputs, **asked.generation), inputs["input_ids"])
            texts = loaded.processor.batch_decode(tokens, skip_special_tokens=True)
            assert list(asked.predict(loaded, lambda done, total: None).values()) == [text.strip() for text in texts]


def test_questions_are_scored_in_all_and_by_kind(composed: Composed, tmp_path: Path) -> None:
    one = task(composed, "scenes_vqa", "task.metrics=[gqa_accuracy]")
    right = {item.id: item.references[0] for item in one.items}
    assert one.score(right, tmp_path)["gqa_accuracy"].value == 1.0
    kinds = {item.kind for item in one.items}
    wrong = {item.id: "nonsense" if item.kind == "colour" else item.references[0] for item in one.items}
    result = one.score(wrong, tmp_path)["gqa_accuracy"]
    assert result.by_type == {kind: float(kind != "colour") for kind in kinds}
    assert len(kinds) > 2


def test_calibration_texts_hold_the_prompt_and_the_answer(composed: Composed, loaded: LoadedModel) -> None:
    one = task(composed, "scenes_vqa")
    batches = list(one.calibration_batches(loaded, CALIBRATION))
    assert [len(batch["input_ids"]) for batch in batches] == [4, 2]
    text = loaded.processor.batch_decode(batches[0]["input_ids"], skip_special_tokens=True)[0]
    assert text.startswith("question")
    assert "short answer" in text


def test_calibration_that_is_evaluated_is_refused_by_its_pixels(composed: Composed, tmp_path: Path) -> None:
    apart = task(composed, "scenes_caption")
    apart.check([CALIBRATION], tmp_path)
    same = replace(apart, calibration_split="evaluation")
    with pytest.raises(
        ValueError, match=r"6 calibration samples are also evaluated in task.split=evaluation \(evaluati"
    ):
        same.check([CALIBRATION], tmp_path)


def test_more_scenes_than_can_be_drawn_before_the_first_cell_are_refused(composed: Composed, tmp_path: Path) -> None:
    one = task(composed, "scenes_caption")
    with pytest.raises(ValueError, match=r"task.limit=5000000: Scenes has no end.*choose at most 100000"):
        replace(one, limit=5_000_000).check([], tmp_path)
    with pytest.raises(ValueError, match=r"calibration.samples=5000000: Scenes has no end.*choose at most 100000"):
        one.check([{**CALIBRATION, "samples": 5_000_000}], tmp_path)


@dataclass(frozen=True)
class ThreeScenes:
    """A reader that has three examples, even if more are asked for."""

    split: str
    count: int

    def __iter__(self) -> Iterator[Example]:
        return iter(Scenes(self.split, 3))


@dataclass(frozen=True)
class Unasked(ThreeScenes):
    """A reader whose scenes have no questions."""

    def __iter__(self) -> Iterator[Example]:
        return (SimpleNamespace(id=scene.id, image=scene.image, questions=()) for scene in super().__iter__())


@dataclass(frozen=True)
class Unread(ThreeScenes):
    """A reader that fails when it is read beyond its first scene."""

    def __iter__(self) -> Iterator[Example]:
        yield next(super().__iter__())
        raise OSError("the second scene is read")


@dataclass(frozen=True)
class FromFile:
    """A reader whose folder has no images and no captions."""

    split: str
    count: int
    seed: int = 0

    def __iter__(self) -> Iterator[Example]:
        Path("no/such/images/captions.json").read_text()
        return iter(())


def test_more_items_than_there_are_is_an_error(composed: Composed, tmp_path: Path) -> None:
    one = replace(task(composed, "scenes_caption"), data={"_target_": f"{__name__}.ThreeScenes"})
    with pytest.raises(ValueError, match=r"task.limit=12: evaluation has 3 items to evaluate"):
        one.check([], tmp_path)
    unasked = replace(task(composed, "scenes_vqa"), data={"_target_": f"{__name__}.Unasked"})
    with pytest.raises(
        ValueError, match=r"evaluation has 0 items to evaluate; 3 of its 3 examples have none, such as no q"
    ):
        unasked.check([], tmp_path)
    with pytest.raises(ConfigError, match=r"task.data._target_=nowhere.Reader"):
        replace(one, data={"_target_": "nowhere.Reader"}).check([], tmp_path)


def test_no_example_is_read_beyond_the_limit(composed: Composed) -> None:
    one = replace(task(composed, "scenes_caption"), data={"_target_": f"{__name__}.Unread"})
    assert len(replace(one, limit=1).items) == 1
    with pytest.raises(OSError, match="the second scene is read"):
        _ = replace(one, limit=2).items


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("scenes_vqa", ["task.prompt=what"], r"prompt='what': has no {question} in it"),
        ("scenes_vqa", ["task.metrics=[cider]"], "cider"),
        ("scenes_caption", ["task.metrics=[gqa_accuracy]"], "gqa_accuracy"),
        ("scenes_caption", ["task.limit=1.5"], "task.limit=1.5: choose a whole number above 0"),
        ("scenes_caption", ["task.generation=3"], "task.generation"),
    ],
)
def test_fields_that_cannot_be_are_errors(
    composed: Composed, tmp_path: Path, name: str, overrides: list[str], message: str
) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        task(composed, name, *overrides).check([], tmp_path)


def test_a_prompt_returned_in_front_is_cut_off() -> None:
    prompt = torch.tensor([[1, 2], [1, 3]])
    answer = torch.tensor([[7], [8]])
    assert torch.equal(new_tokens(torch.cat([prompt, answer], dim=1), prompt), answer)
    assert torch.equal(new_tokens(answer, prompt), answer)
