"""Retrieval: the scores are the model's own, the shortlist and its ranking are as defined, nothing is computed twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from launch.start import run_sweep
from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.model_catalog import read_model
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.data.scenes import Scenes
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.models.retriever import Retriever
from mmq_sweeps.reporting.table import rows
from mmq_sweeps.store.store import Store
from mmq_sweeps.tasks.ranking import shortlisted
from mmq_sweeps.tasks.retrieval import RetrievalTask

Composed = Callable[..., DictConfig]
CALIBRATION = {"samples": 5, "batch_size": 4, "seed": 0}
SMALL = ("model=tiny_blip2_itm", "task=scenes_retrieval", "task.limit=8", "task.shortlist=3", "tracker=none")


@pytest.fixture(scope="module")
def retriever() -> LoadedModel:
    with quiet_libraries():
        return load_model(read_model("tiny_blip2_itm"))


@pytest.fixture
def task(composed: Composed) -> RetrievalTask:
    config = composed(*SMALL)
    return build("task", next(iter(plan([config]).configs.values()))["task"])


def silent(done: int, total: int) -> None:
    assert 0 < done <= total


def whole(retriever: LoadedModel, pixels: torch.Tensor, texts: Any, matching: bool) -> torch.Tensor:
    """Run the model's own forward pass over pairs."""
    with torch.no_grad():
        return retriever.model(**Retriever(retriever, 64).forward_inputs(pixels, texts, matching)).logits_per_image


def test_scores_are_those_of_the_models_own_forward_pass(retriever: LoadedModel) -> None:
    ours, examples = Retriever(retriever, 64), list(Scenes(count=4))
    pixels = ours.pixels([example.image for example in examples])
    texts = ours.tokenized([example.references[place] for place, example in enumerate(examples)])
    assert len({int(length) for length in texts.mask.sum(dim=1)}) > 1, "padding is part of what is compared"
    with torch.no_grad():
        seen, looks = ours.encode_images(pixels)
        similarity = torch.einsum("iqd,md->iqm", looks, ours.encode_texts(texts)).amax(dim=1)
        matching = torch.stack([ours.match(vision, texts) for vision in seen])
    assert torch.allclose(similarity, whole(retriever, pixels, texts, matching=False), atol=1e-5)
    for image in range(len(seen)):
        expected = whole(retriever, pixels[[image] * len(texts)], texts, matching=True)[:, 1]
        assert torch.allclose(matching[image], expected, atol=1e-5)


def test_the_inputs_of_a_pair_are_the_processors_own(retriever: LoadedModel) -> None:
    ours, examples = Retriever(retriever, 64), list(Scenes(count=3))
    images, said = [example.image for example in examples], [example.references[0] for example in examples]
    made = ours.forward_inputs(ours.pixels(images), ours.tokenized(said), matching=True)
    theirs = retriever.processor(images=images, text=said, return_tensors="pt", padding=True)
    for name, tensor in theirs.items():
        assert torch.equal(made[name], tensor), name


def test_ranks_are_those_of_every_pair_scored_one_by_one(retriever: LoadedModel, task: RetrievalTask) -> None:
    everything = replace(task, limit=4, shortlist=4)
    found = everything.predict(retriever, silent)
    ours = Retriever(retriever, 64)
    said = [text for example in everything.images for text in example.references]
    images, texts = ours.pixels([example.image for example in everything.images]), ours.tokenized(said)
    pairs = [(image, text) for image in range(4) for text in range(len(said))]
    first, second = (torch.tensor(side) for side in zip(*pairs, strict=True))
    matching = whole(retriever, images[first], texts[second], matching=True)[:, 1].reshape(4, -1)
    similarity = torch.stack([whole(retriever, images[[image]], texts, matching=False) for image in range(4)])
    scores = matching + similarity.reshape(4, -1)
    for place, example in enumerate(everything.images):
        listed = shortlisted(similarity.reshape(4, -1).numpy(), 4)[place]
        order = sorted(np.flatnonzero(listed), key=lambda text: -float(scores[place, text]))
        own = [rank for rank, text in enumerate(order) if text // 5 == place]
        rank = json.loads(found[example.id])["rank"]
        assert rank == own[0] if own else rank >= 4
        for number in range(5):
            column = scores[:, place * 5 + number]
            assert json.loads(found[f"{example.id}/{number}"])["rank"] == int((column > column[place]).sum())


def test_batch_sizes_change_no_rank(retriever: LoadedModel, task: RetrievalTask) -> None:
    sizes = ((1, 7), (8, 99))
    found = [replace(task, batch_size=one, pair_batch_size=pairs).predict(retriever, silent) for one, pairs in sizes]
    assert found[0] == found[1]
    assert len(found[0]) == 8 * 6


def test_an_image_is_encoded_once_and_equal_texts_are_one(retriever: LoadedModel, task: RetrievalTask) -> None:
    said = task.images[0].references
    alike = replace(task)
    alike.__dict__["_asked"] = [replace(example, references=said) for example in task.images]
    images: list[int] = []
    texts: list[int] = []

    def count(_module: object, _args: object, inputs: dict, _output: object) -> None:
        if "query_embeds" not in inputs:
            texts.append(len(inputs["input_ids"]))

    hooks = [
        retriever.model.vision_model.register_forward_hook(lambda *_: images.append(1)),
        retriever.model.embeddings.register_forward_hook(count, with_kwargs=True),
    ]
    found = alike.predict(retriever, silent)
    for hook in hooks:
        hook.remove()
    assert sum(images) == 1, "one batch of eight images"
    assert sum(texts) == len(set(said))
    ranks = [json.loads(found[example.id])["rank"] for example in task.images]
    assert min(ranks) >= 7, "each image's texts tie with those of seven others"


def test_calibration_passes_show_both_paths(retriever: LoadedModel, task: RetrievalTask) -> None:
    passes = list(task.calibration_batches(retriever, CALIBRATION))
    assert [one["use_image_text_matching_head"] for one in passes] == [False, True, False, True]
    assert [len(one["input_ids"]) for one in passes] == [4, 4, 1, 1]
    own, mixed = (retriever.processor.batch_decode(one["input_ids"], skip_special_tokens=True) for one in passes[:2])
    assert mixed == [own[0], own[2], own[2], own[0]], "every second text is the next image's"
    with torch.no_grad():
        for one in passes:
            assert torch.isfinite(retriever.model(**one).logits_per_image).all()


def test_a_sweep_records_both_directions(
    composed: Composed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_sweep([composed(*SMALL, "method=rtn", "bits=4", f"store.dir={tmp_path}")]) == 0
    capsys.readouterr()
    store = Store.open(tmp_path)
    baseline, record = store.records()
    assert list(record.metrics) == [f"{side}_recall_at_{k}" for side in ("text", "image") for k in (1, 5, 10)], (
        "as the task lists them: the first is its main one"
    )
    assert {name: metric["count"] for name, metric in record.metrics.items() if name.endswith("_1")} == {
        "text_recall_at_1": 8, "image_recall_at_1": 40,
    }  # fmt: skip
    items = store.items(record.id)
    assert len(items) == 48
    for name, metric in record.metrics.items():
        scores = [item["scores"][name] for item in items if name in item["scores"]]
        assert sum(scores) / len(scores) == pytest.approx(metric["value"])
    shown = {row["method"]: row for row in rows([baseline, record], store.items)}["rtn"]["metrics"]
    for name, metric in shown.items():
        assert metric["difference"] == pytest.approx(record.metrics[name]["value"] - baseline.metrics[name]["value"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model=tiny_blip2"],
            r"tiny_blip2 is a Blip2ForConditionalGeneration.*Choose model=blip2_itm.*tiny_blip2_itm",
        ),
        (
            ["task=scenes_caption"],
            r"task=scenes_caption: asks for a caption, and model=tiny_blip2_itm has no.*tiny_llava",
        ),
        (["task=scenes_vqa"], "task=scenes_vqa: asks for a question"),
        (["task.metrics=[cider]"], "cider is no metric of task=scenes_retrieval. Choose recall_at_1"),
        (["task.metrics=[text_recall]"], "Unknown metric 'text_recall'. Did you mean"),
        (["task.limit=0"], "task.limit=0: choose a whole number above 0"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_loaded(
    composed: Composed, overrides: list[str], message: str
) -> None:
    other = [one for one in SMALL if one.split("=")[0] not in [more.split("=")[0] for more in overrides]]
    other = other if not overrides[0].startswith("task=") else ["model=tiny_blip2_itm"]
    with pytest.raises(ConfigError, match=message):
        plan([composed(*other, *overrides)])


def test_a_shortlist_longer_than_the_set_is_refused(task: RetrievalTask, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task.shortlist=9: there are 8 images to choose from; choose 1 to 8"):
        replace(task, shortlist=9).check([], tmp_path)
    with pytest.raises(ValueError, match=r"shortlist=0: choose a whole number above 0"):
        replace(task, shortlist=0)
    with pytest.raises(ValueError, match=r"task.limit=null: Scenes has no end"):
        replace(task, limit=None).check([], tmp_path)


def test_marks_are_dropped_and_long_texts_cut(retriever: LoadedModel, task: RetrievalTask) -> None:
    assert (
        replace(task, dropped_marks='.!"()*#:;~')._cleaned(' A (red)\n dog: "runs"... fast! ') == "A red dog runs fast"
    )
    assert Retriever(retriever, 6).tokenized(["one two three four five six seven eight nine"]).tokens.shape == (1, 6)
