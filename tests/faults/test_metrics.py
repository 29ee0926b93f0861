"""Figures that mean little say so, and a metric's name stands for a single script."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from launch.start import run_sweep
from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.model_catalog import read_model
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.execution.run_cell import _summary
from mmq_sweeps.metrics import AnswerScorer, CaptionScorer, MetricResult, RetrievalScorer
from mmq_sweeps.metrics.answers.vqa import VqaAccuracy
from mmq_sweeps.metrics.base import Scores
from mmq_sweeps.metrics.intervals import result_of
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.models.logits import watching_logits
from mmq_sweeps.store.store import Store
from mmq_sweeps.tasks import score
from mmq_sweeps.tasks.ranking import Captions, predictions_of

Composed = Callable[..., DictConfig]
IDS = [str(place) for place in range(100)]
DOGS = {place: [f"a dog number {place} runs", f"dog {place}"] for place in IDS}


def warnings_of(results: dict[str, MetricResult]) -> set[tuple[str, ...]]:
    """Return the warnings that all ``results`` share; they must be alike."""
    return {result.warnings for result in results.values()}


@pytest.mark.parametrize(
    ("annotators", "answer", "before", "since"),
    [
        (["t-shirt"] * 10, "t-shirt", 0.0, 1.0),
        (["two"] * 6 + ["four"] * 4, "two", 0.0, 1.0),
        (["yes"] * 10, "Yes.", 1.0, 0.0),
        (["yes"] * 9 + ["no"], "Yes.", 1.0, 1.0),
        (["2"] * 6 + ["two"] * 4, "two", 1.0, 1.0),
        (["a dog"] * 2 + ["dog"] * 8, "the dog", 1.0, 1.0),
        (["a dog"] * 10, "the dog", 0.0, 0.0),
        (["yes\n"] * 10, " yes", 0.0, 1.0),
    ],
)
def test_each_vqa_script_gives_its_own_figure(annotators: list[str], answer: str, before: float, since: float) -> None:
    found = AnswerScorer({"q": annotators}, ["vqa_accuracy", "vqa_accuracy_2021"]).score({"q": answer})
    assert found["vqa_accuracy"].value == pytest.approx(before, abs=1e-12)
    assert found["vqa_accuracy_2021"].value == pytest.approx(since, abs=1e-12)


def test_the_record_says_which_vqa_script_it_was() -> None:
    found = AnswerScorer({"q": ["yes"] * 10}, ["vqa_accuracy", "vqa_accuracy_2021"]).score({"q": "yes"})
    assert _summary(found["vqa_accuracy"])["definition"] == "VQA script before March 2021, as in LAVIS"
    assert (
        _summary(found["vqa_accuracy_2021"])["definition"] == "VQA script since March 2021, GT-Vision-Lab/VQA a013f00"
    )


def test_too_few_annotators_are_told_by_the_metrics_own_name() -> None:
    with pytest.raises(ValueError, match="vqa_accuracy_2021 compares an answer with at least 4"):
        AnswerScorer({"q": ["yes"]}, ["vqa_accuracy_2021"])


def test_captions_that_are_identical_are_told_with_their_number() -> None:
    scorer = CaptionScorer(DOGS, ["cider", "rouge_l", "bleu_4"])
    said = {place: "a dog runs" if int(place) < 68 else DOGS[place][0] for place in IDS}
    assert warnings_of(scorer.score(said)) == {("68 of 100 captions are identical",)}
    assert _summary(scorer.score(said)["cider"])["warnings"] == ["68 of 100 captions are identical"]
    assert warnings_of(scorer.score(dict.fromkeys(IDS, "A dog runs fast."))) == {("all 100 captions are identical",)}


def test_captions_that_are_empty_once_tokenized_are_told() -> None:
    scorer = CaptionScorer(DOGS, ["cider", "bleu_1"])
    assert warnings_of(scorer.score(dict.fromkeys(IDS, ""))) == {("all 100 captions are empty",)}
    assert warnings_of(scorer.score(dict.fromkeys(IDS, " ... "))) == {("all 100 captions are empty",)}
    some = {place: "" if int(place) < 7 else DOGS[place][0] for place in IDS}
    assert warnings_of(scorer.score(some)) == {("7 of 100 captions are empty",)}


def test_captions_as_varied_as_their_references_are_no_warning() -> None:
    scorer = CaptionScorer(DOGS, ["cider"])
    result = scorer.score({place: texts[0] for place, texts in DOGS.items()})["cider"]
    assert result.warnings == ()
    assert "warnings" not in _summary(result)
    alike = {place: ["a dog" if int(place) < 60 else f"cat {place}"] for place in IDS}
    said = {place: texts[0] for place, texts in alike.items()}
    assert CaptionScorer(alike, ["bleu_1"]).score(said)["bleu_1"].warnings == ()


def test_cider_of_one_image_and_of_images_with_the_same_references_is_told() -> None:
    one = CaptionScorer({"a": ["a dog"]}, ["cider", "bleu_1"]).score({"a": "a dog"})
    assert one["cider"].value == 0.0
    assert "CIDEr of one image is 0 whatever the caption" in one["cider"].warnings
    assert one["bleu_1"].warnings == ("it is of one item, so its interval has no width",)
    same = CaptionScorer({"a": ["a dog"], "b": ["a dog"]}, ["cider"]).score({"a": "a dog", "b": "a cat"})["cider"]
    told = "CIDEr of all 2 images is 0 whatever the caption: their references have no words of their own"
    assert (same.value, same.warnings) == (0.0, (told,))


def test_references_that_are_all_empty_are_told() -> None:
    captions = CaptionScorer({"a": ["a dog"], "b": ["", "..."]}, ["rouge_l"]).score({"a": "a dog", "b": "a cat"})
    assert warnings_of(captions) == {("every reference of 1 of 2 images is empty",)}
    answers = AnswerScorer({"1": ["the"] * 4, "2": ["red"] * 4}, ["gqa_accuracy"]).score({"1": "x", "2": "red"})
    assert warnings_of(answers) == {("every reference of 1 of 2 questions is empty",)}


def test_answers_all_alike_are_told_where_the_right_ones_differ() -> None:
    right = {place: ["yes" if int(place) % 2 else "no"] for place in IDS}
    scorer = AnswerScorer(right, ["gqa_accuracy"])
    assert warnings_of(scorer.score(dict.fromkeys(IDS, "Yes."))) == {("all 100 answers are identical",)}
    assert warnings_of(scorer.score(dict.fromkeys(IDS, "the"))) == {("all 100 answers are empty",)}
    mostly = {place: "no" if int(place) < 5 else "yes" for place in IDS}
    assert warnings_of(scorer.score(mostly)) == {()}, "a bias, on questions of two answers"
    yes = AnswerScorer({place: ["yes"] for place in IDS}, ["gqa_accuracy"])
    assert warnings_of(yes.score(dict.fromkeys(IDS, "yes"))) == {()}, "as all should be"
    open_ended = AnswerScorer({place: [f"thing {place}"] for place in IDS}, ["gqa_accuracy"])
    assert warnings_of(open_ended.score(mostly)) == {("95 of 100 answers are identical",)}


def test_a_type_of_one_question_is_told() -> None:
    types = {"1": "count", "2": "colour", "3": "colour"}
    answers = {"1": ["2"], "2": ["red"], "3": ["blue"]}
    found = AnswerScorer(answers, ["gqa_accuracy"], types).score({"1": "2", "2": "red", "3": "blue"})
    assert warnings_of(found) == {("the figure of type 'count' is of one item",)}


def test_recall_that_no_model_can_miss_is_told() -> None:
    scorer = RetrievalScorer(
        {image: [f"{image}{text}" for text in range(2)] for image in "abc"},
        ["text_recall_at_1", "text_recall_at_5", "image_recall_at_1", "image_recall_at_5", "recall_at_5"],
    )
    found = scorer.score(np.random.default_rng(0).random((3, 6)))
    text = "text recall at 5 says nothing for 3 of 3 images: there are fewer than 5 wrong texts"
    image = "image recall at 5 says nothing: the number of images is 3"
    assert {name: result.warnings for name, result in found.items()} == {
        "text_recall_at_1": (),
        "text_recall_at_5": (text,),
        "image_recall_at_1": (),
        "image_recall_at_5": (image,),
        "recall_at_5": (text, image),
    }


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_never_right_however_few_images_there_are(wrong: float) -> None:
    names = ["text_recall_at_10", "image_recall_at_10", "recall_mean"]
    for images in (1, 3):
        scorer = RetrievalScorer({str(place): [f"t{place}"] for place in range(images)}, names)
        found = scorer.score(np.full((images, images), wrong))
        assert {result.value for result in found.values()} == {0.0}
        told = f"scores were not finite for {images} of {images} images and {images} of {images} texts"
        assert all(told in result.warnings for result in found.values())
    one = np.array([[wrong, 0.0], [0.0, 1.0]])
    found = RetrievalScorer({"a": ["x"], "b": ["y"]}, names).score(one)
    assert found["text_recall_at_10"].per_item == {"a": 0.0, "b": 1.0}
    assert found["image_recall_at_10"].per_item == {"x": 0.0, "y": 1.0}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_matching_logit_that_is_not_finite_is_never_right(wrong: float) -> None:
    captions = Captions(["a/0", "b/0"], np.array([0, 1]), ["x", "y"], np.array([0, 1]))
    similarity = np.array([[0.9, 0.1], [0.1, 0.9]])
    matching = np.array([[wrong, 0.2], [0.1, 0.9]])
    found = predictions_of(["a", "b"], captions, matching, similarity, 2)
    assert found["a"] == '{"rank": null, "first": ["b/0"]}'
    assert found["b"] == '{"rank": 0, "first": ["b/0", "a/0"]}'
    assert found.not_finite == {"a", "a/0"}


def test_a_metric_that_is_no_number_fails_the_cell_by_name() -> None:
    broken = result_of(VqaAccuracy(), ("q", "r"), Scores.mean(np.array([1.0, float("nan")])))
    with pytest.raises(ValueError, match="metric vqa_accuracy: its value is nan"):
        _summary(broken)


def test_logits_that_are_not_finite_are_told_at_the_number(
    composed: Composed, loaded: LoadedModel, tmp_path: Path
) -> None:
    config = composed("task=scenes_vqa", "task.limit=6", "task.batch_size=4", "task.metrics=[gqa_accuracy]")
    task = build("task", next(iter(plan([config]).configs.values()))["task"])
    whole = task.predict(loaded, lambda done, total: None)
    assert whole.not_finite == set()
    assert "finite" not in str(task.score(whole, tmp_path)["gqa_accuracy"].warnings)
    name = next(name for name, _ in loaded.model.named_modules() if name.endswith("decoder.layers.0.fc1"))
    for value in (float("nan"), float("inf")):
        with loaded.weights_replaced({name: torch.full_like(loaded.weight(name), value)}):
            found = task.predict(loaded, lambda done, total: None)
        assert len(found.not_finite) == 6
        warnings = task.score(found, tmp_path)["gqa_accuracy"].warnings
        assert "logits were not finite for 6 of 6 items" in warnings


@pytest.mark.parametrize(
    ("token", "value"), [(3, float("nan")), (3, float("inf")), (slice(None), float("-inf"))], ids=["nan", "inf", "all"]
)
def test_only_the_rows_whose_logits_are_no_answer_are_told(
    loaded: LoadedModel, token: int | slice, value: float
) -> None:
    """A model may rule out tokens by minus infinity, and the check of a model lets it, but not all of them."""
    language = loaded.model.language_model
    tokens = torch.tensor([[4, 5], [6, 7], [8, 9]])

    def spoil_row_1(_module: torch.nn.Module, _inputs: object, logits: torch.Tensor) -> None:
        logits[0, -1, 3] = float("-inf")
        logits[1, -1, token] = value

    spoil = language.get_output_embeddings().register_forward_hook(spoil_row_1)
    try:
        with watching_logits(loaded.model) as watch, torch.no_grad():
            language(input_ids=tokens)
            language(input_ids=tokens[:, :1])
            assert watch.rows(3) == [False, True, False]
            language(input_ids=tokens.repeat_interleave(2, dim=0))
            assert watch.rows(3) == [True, False, False], "row 1 is the second beam of the first of three items"
            with pytest.raises(RuntimeError, match="asked for 3 rows, and its logits have none"):
                watch.rows(3)
    finally:
        spoil.remove()


def test_retrieval_by_a_broken_model_finds_nothing_and_says_so(composed: Composed, tmp_path: Path) -> None:
    config = composed("model=tiny_blip2_itm", "task=scenes_retrieval", "task.limit=4", "task.shortlist=3")
    task = build("task", next(iter(plan([config]).configs.values()))["task"])
    with quiet_libraries():
        loaded = load_model(read_model("tiny_blip2_itm"))
    with torch.no_grad():
        loaded.model.vision_projection.bias.fill_(float("nan"))
    results = task.score(task.predict(loaded, lambda done, total: None), tmp_path)
    assert {result.value for result in results.values()} == {0.0}
    told = "scores were not finite for 4 of 4 images and 20 of 20 texts"
    assert all(told in result.warnings for result in results.values())


def test_the_scoring_command_shows_warnings_as_table_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "captions.json"
    file.write_text('{"predictions": [{"image_id": 1, "caption": "a dog"}], "references": [["a dog"]]}')
    told = "CIDEr of one image is 0 whatever the caption"
    assert score.main([str(file)]) == 0
    assert f"cider: {told}\n" in capsys.readouterr().out
    assert score.main([str(file), "--json"]) == 0
    assert told in json.loads(capsys.readouterr().out)["cider"]["warnings"]


def test_a_warning_reaches_the_record(composed: Composed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = composed(
        "method=none", "task.limit=1", "task.metrics=[cider]", "tracker=none", f"store.dir={tmp_path}/runs"
    )
    assert run_sweep([config]) == 0
    capsys.readouterr()
    (record,) = Store.open(tmp_path / "runs").records()
    assert record.metrics["cider"]["value"] == 0.0
    assert "CIDEr of one image is 0 whatever the caption" in record.metrics["cider"]["warnings"]


def test_bleu_of_captions_with_too_few_words_is_told() -> None:
    found = CaptionScorer({"a": ["a dog runs"], "b": ["a cat"]}, ["bleu_3", "bleu_4"]).score(
        {"a": "a dog runs", "b": "cat"}
    )
    assert found["bleu_3"].warnings == ()
    assert found["bleu_4"].warnings == ("no caption has 4 words, so BLEU-4 compares nothing",)


def test_a_retriever_that_scores_every_pair_alike_is_told(composed: Composed, tmp_path: Path) -> None:
    config = composed("model=tiny_blip2_itm", "task=scenes_retrieval", "task.limit=4", "task.shortlist=4")
    task = build("task", next(iter(plan([config]).configs.values()))["task"])
    captions, images = task._captions, [example.id for example in task.images]
    alike = np.ones((4, len(captions.distinct)))
    collapsed = task.score(predictions_of(images, captions, alike, alike, 4), tmp_path)["text_recall_at_1"]
    assert collapsed.value == 0.0
    assert collapsed.warnings == ("3 of 4 images find the same text first", "20 of 20 texts find the same image first")
    right = captions.owner[np.array([captions.wording.tolist().index(place) for place in range(alike.shape[1])])]
    perfect = (np.arange(4)[:, None] == right).astype(float)
    found = task.score(predictions_of(images, captions, perfect, perfect, 4), tmp_path)["text_recall_at_1"]
    assert (found.value, found.warnings) == (1.0, ())
