"""Every item is asked unchanged under an id of its own, or is named and counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.model_catalog import read_model
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.data.coco import CocoCaptions, CocoKarpathy
from mmq_sweeps.data.flickr30k import Flickr30k
from mmq_sweeps.data.gqa import Gqa
from mmq_sweeps.data.vqav2 import VqaV2
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.models.plain_text import plain_text
from mmq_sweeps.models.retriever import Retriever
from mmq_sweeps.tasks.generation.item import Item
from mmq_sweeps.tasks.generation.task import GenerationTask
from mmq_sweeps.tasks.generation.window import too_long
from mmq_sweeps.tasks.vqa import VqaTask
from tests.data.layouts import (
    karpathy_image,
    write_coco,
    write_flickr30k,
    write_gqa,
    write_json,
    write_picture,
    write_vqav2,
)

Composed = Callable[..., DictConfig]
SPECIAL = ("<image>", "<pad>", "<unk>", "</s>", "<s>")


@pytest.fixture(scope="module")
def llava() -> LoadedModel:
    with quiet_libraries():
        return load_model(read_model("tiny_llava"))


@pytest.fixture(scope="module")
def retriever() -> LoadedModel:
    with quiet_libraries():
        return load_model(read_model("tiny_blip2_itm"))


@pytest.fixture
def task(composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make a task over small data sets in ``tmp_path/data``."""
    root = tmp_path / "data"
    for split in ("val2014", "train2014"):
        write_vqav2(root / "vqav2", split, (1, 2, 3) if split == "val2014" else (4, 5))
    write_coco(root / "coco_caption")
    write_coco(root / "coco_caption", "train2017", (1001, 1002))
    write_gqa(root / "gqa")
    write_gqa(root / "gqa", "train_balanced", ("n8", "n9"))
    write_flickr30k(root / "flickr30k")
    monkeypatch.setenv("MMQ_DATA", str(root))

    def made(*overrides: str) -> Any:
        config = composed("tracker=none", "calibration.samples=2", "calibration.batch_size=2", *overrides)
        return build("task", next(iter(plan([config]).configs.values()))["task"])

    return made


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def question_of(root: Path, place: int, value: Any) -> None:
    def change(content: Any) -> None:
        content["questions"][place]["question"] = value

    edit(root / "data" / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json", change)


def asking(task: VqaTask, question: str) -> VqaTask:
    """Return ``task`` with a single item, which asks ``question``."""
    one = replace(task, limit=1)
    one.__dict__["_asked"] = [replace(one.items[0], question=question)]
    return one


@pytest.mark.parametrize("kind", ["tiny_blip2", "tiny_llava"])
def test_a_question_that_spells_a_special_token_is_asked_as_text(
    kind: str, task: Callable[..., Any], loaded: LoadedModel, llava: LoadedModel
) -> None:
    model = {"tiny_blip2": loaded, "tiny_llava": llava}[kind]
    one = task("task=vqav2", f"model={kind}", "task.limit=1")
    tokenizer = model.processor.tokenizer
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    assert set(special) == set(map(str, tokenizer.added_tokens_decoder.values())), "all that the tokenizer has"

    def count(question: str) -> dict[str, int]:
        item = one.items[0]
        prompt = replace(item, question=question).prompt_for(model.processor)
        shown = [[item.example.image]]
        tokens = model.processor(images=shown, text=[prompt], return_tensors="pt")["input_ids"][0].tolist()
        return {token: tokens.count(identity) for token, identity in special.items() if token != tokenizer.unk_token}

    usual = count("what is red")
    for token in SPECIAL:
        for question in (f"what is {token}", f"{token}{token}", f"<{token}image>", f"</{token}s>red{token}"):
            assert count(question) == usual, question
            assert token not in replace(one.items[0], question=question).prompt_for(model.processor).split("\n")[-1]
        assert len(asking(one, f"what is {token} here").predict(model, lambda done, total: None)) == 1


def test_a_right_text_that_spells_a_special_token_calibrates_as_text(
    task: Callable[..., Any], llava: LoadedModel
) -> None:
    one = task("task=coco_caption", "model=tiny_llava", "task.limit=2")
    drawn = list(one.examples.drawn({"samples": 2, "seed": 0}))
    one.examples.__dict__["drawn"] = lambda _: [replace(one, references=("a </s> <image> dog",)) for one in drawn]
    (batch,) = one.calibration_batches(llava, {"samples": 2, "batch_size": 2, "seed": 0})
    image, end = (llava.processor.tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "</s>"))
    assert (batch["input_ids"] == image).sum() == 2 * 9, "9 patches an image"
    assert not (batch["input_ids"] == end).any()


def test_a_caption_that_spells_a_special_token_is_ranked_as_text(retriever: LoadedModel) -> None:
    ours = Retriever(retriever, 64)
    usual = ours.tokenized(["a red dot"]).tokens[0].tolist()
    identities = {token: retriever.processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    for token, identity in identities.items():
        found = ours.tokenized([f"a red {token} dot"]).tokens[0].tolist()
        if token != "<unk>":
            assert found.count(identity) == usual.count(identity)


def test_text_that_holds_no_special_token_stays_as_it_is(loaded: LoadedModel) -> None:
    for text in ("is a < b > c?", "<b>bold</b> [x] {y}", "2 << 3", "", "<imag", "image>"):
        assert plain_text(text, loaded.processor) == text


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "the question is null, not text"),
        (42, "the question is 42, not text"),
        (["what"], r'the question is \["what"\], not text'),
        ("", "the question is empty"),
        (" \n", "the question is empty"),
        ("\u200b \u00ad", "the question is empty"),
        ("a \ud800 b", r'the question is "a \\ud800 b", which holds half a character'),
    ],
    ids=str,
)
def test_a_question_that_cannot_be_asked_is_named_or_left_out_and_counted(
    value: Any, problem: str, task: Callable[..., Any], tmp_path: Path
) -> None:
    question_of(tmp_path, 1, value)
    with pytest.raises(ValueError, match=rf"task.split=val2014: 1 of 6 items cannot be used: 2000: {problem}\. Mend"):
        task("task=vqav2", "task.limit=6").check([], tmp_path)
    one = task("task=vqav2", "task.limit=6", "task.allow_missing=true")
    one.check([], tmp_path)
    assert [item.id for item in one.items] == ["1000", "1001", "2001", "3000", "3001"]
    missing = one.notes()["missing"]
    assert (missing["items"], missing["texts"], list(missing["first_texts"])) == (1, 1, ["2000"])
    answers = {item.id: f"answer {item.id}" for item in one.items}
    result = one.score(answers, tmp_path)["vqa_accuracy"]
    assert result.count == 5
    assert result.warnings == ("1 of 6 items were left out: 1 text cannot be used",)


def test_captions_that_are_no_texts_are_named_or_left_out_and_counted(task: Callable[..., Any], tmp_path: Path) -> None:
    annotations = tmp_path / "data" / "coco_caption" / "annotations" / "captions_val2017.json"
    edit(annotations, lambda content: content["annotations"][0].update(caption=None))
    edit(annotations, lambda content: content["annotations"][2].update(caption=7))
    with pytest.raises(
        ValueError, match=r"2 of 4 items cannot be used: 37: one of its right texts is 7, not text, 9: "
    ):
        task("task=coco_caption", "task.limit=4").check([], tmp_path)
    image = tmp_path / "data" / "coco_caption" / "val2017" / "000000000139.jpg"
    image.write_bytes(b"")
    one = task("task=coco_caption", "task.limit=4", "task.allow_missing=true", "task.metrics=[bleu_1]")
    one.check([], tmp_path)
    result = one.score({item.id: "a thing" for item in one.items}, tmp_path)["bleu_1"]
    assert result.count == 1
    assert "3 of 4 items were left out: 1 image and 2 texts cannot be used" in result.warnings


def test_an_answer_that_is_no_text_is_named(task: Callable[..., Any], tmp_path: Path) -> None:
    edit(
        tmp_path / "data" / "gqa" / "testdev_balanced_questions.json",
        lambda content: next(iter(content.values())).update(answer=None),
    )
    with pytest.raises(ValueError, match=r"1 of 6 items cannot be used: 2000000: one of its right texts is null"):
        task("task=gqa", "task.limit=6").check([], tmp_path)
    edit(
        tmp_path / "data" / "vqav2" / "v2_mscoco_val2014_annotations.json",
        lambda content: content["annotations"][-1]["answers"][0].update(answer=3),
    )
    with pytest.raises(ValueError, match=r"1 of 6 items cannot be used: 1000: one of its right texts is 3, not text"):
        task("task=vqav2", "task.limit=6").check([], tmp_path)


def test_images_whose_captions_cannot_be_ranked_are_named_or_left_out_and_counted(
    task: Callable[..., Any], tmp_path: Path
) -> None:
    edit(
        tmp_path / "data" / "flickr30k" / "dataset_flickr30k.json",
        lambda content: content["images"][0]["sentences"][1].update(raw=None),
    )
    overrides = ("task=flickr30k_retrieval", "model=tiny_blip2_itm", "task.shortlist=2")
    with pytest.raises(ValueError, match=r"1 of 4 items cannot be used: 1000092795: one of its right texts is null"):
        task(*overrides).check([], tmp_path)
    one = task(*overrides, "task.allow_missing=true")
    one.check([], tmp_path)
    assert [image.id for image in one.images] == ["1000092797", "1000092799", "1000092801"]
    ranks = {item: '{"rank": 0}' for image in one.images for item in (image.id, *(f"{image.id}/{n}" for n in range(5)))}
    warnings = one.score(ranks, tmp_path)["text_recall_at_1"].warnings
    assert "1 of 4 items were left out: 1 text cannot be used" in warnings


def test_a_calibration_sample_that_cannot_be_asked_is_never_left_out(task: Callable[..., Any], tmp_path: Path) -> None:
    edit(
        tmp_path / "data" / "vqav2" / "v2_OpenEnded_mscoco_train2014_questions.json",
        lambda content: [one.update(question=None) for one in content["questions"]],
    )
    one = task("task=vqav2", "task.limit=6", "task.allow_missing=true")
    with pytest.raises(ValueError, match=r"task.calibration_split=train2014: 2 of 2 items cannot be used"):
        one.check([{"samples": 2, "seed": 0, "batch_size": 2}], tmp_path)


def test_an_item_that_the_processor_refuses_is_named(task: Callable[..., Any], loaded: LoadedModel) -> None:
    one: GenerationTask = task("task=vqav2", "task.limit=3", "task.batch_size=3")
    items = one.items

    class Refusing(Item):
        def prompt_for(self, processor: Any) -> str:  # noqa: ARG002
            raise ValueError("too long for this model")

    bad = Refusing(*(getattr(items[1], name) for name in items[1].__dataclass_fields__))
    one.__dict__["_asked"] = [items[0], bad, items[2]]
    with pytest.raises(ValueError, match=f"item '{items[1].id}' cannot be asked: too long for this model"):
        one.predict(loaded, lambda done, total: None)


def test_a_question_too_long_for_the_model_is_named(task: Callable[..., Any], loaded: LoadedModel) -> None:
    one: GenerationTask = task("task=vqav2", "task.limit=3", "task.batch_size=3")
    items = one.items
    one.__dict__["_asked"] = [items[0], replace(items[1], question="is it red " * 1000), items[2]]
    with pytest.raises(ValueError, match=f"item '{items[1].id}' cannot be asked: "):
        one.predict(loaded, lambda done, total: None)


@pytest.mark.parametrize("kind", ["tiny_blip2", "tiny_llava"])
def test_a_question_too_long_for_the_model_is_refused_or_left_out_and_counted(
    kind: str, task: Callable[..., Any], loaded: LoadedModel, llava: LoadedModel, tmp_path: Path
) -> None:
    """A model with learned positions fails on it; rotary positions answer beyond the length of training."""
    model = {"tiny_blip2": loaded, "tiny_llava": llava}[kind]
    question_of(tmp_path, 1, "is it red " * 100)
    one: GenerationTask = task("task=vqav2", f"model={kind}", "task.limit=3", "task.batch_size=3")
    one.check([], tmp_path)
    (said,) = one.check_model(model)
    (long,) = (item.id for item in one.items if len(item.question) > 100)
    assert re.search(
        rf"1 of 3 items cannot be used: {long}: its prompt has 3\d\d tokens and the answer up to \d+ "
        r"\(max_new_tokens\), and the model's window is (76|128)\. Set task.allow_missing=true",
        said,
    )

    gaps = replace(one, allow_missing=True)
    gaps.check([], tmp_path)
    for _ in range(2):  # Also without the check of the model.
        predictions = gaps.predict(model, lambda done, total: None)
        assert long not in predictions
        assert len(predictions) == 2
        assert_warned(gaps, predictions, tmp_path, "1 of 3 items were left out: 1 text cannot be used")
        assert gaps.notes()["missing"]["texts"] == gaps.notes()["missing"]["items"] == 1
        assert "window" in gaps.notes()["missing"]["first_texts"][long]
        assert list(gaps.check_model(model)) == list(replace(gaps, limit=1).check_model(model))


def test_a_question_as_long_as_the_window_is_asked(task: Callable[..., Any], loaded: LoadedModel) -> None:
    one = asking(task("task=vqav2", "task.limit=1"), "red")
    window = loaded.model.config.get_text_config().max_position_embeddings
    (item,) = one.items
    size = too_long(loaded, [replace(item, question="red " * 1000)], {})[item.id]
    around = int(re.findall(r"has (\d+) tokens", size)[0]) - 1000
    for words, answer in ((window - around, 1), (window - around - 4, 5)):
        asked = replace(asking(one, "red " * words), generation={"max_new_tokens": answer, "min_new_tokens": answer})
        asked.__dict__["_asked"] = [replace(item, question="red " * words)]
        assert too_long(loaded, asked.items, asked.generation) == {}
        assert len(asked.predict(loaded, lambda done, total: None)) == 1
        longer = [replace(item, question="red " * (words + 1))]
        assert list(too_long(loaded, longer, asked.generation)) == [item.id]


def test_a_question_with_too_few_annotators_is_refused_or_left_out_and_counted(
    task: Callable[..., Any], tmp_path: Path
) -> None:
    one: GenerationTask = task("task=vqav2", "task.limit=3")
    short = one.items[0].id

    def few(content: Any) -> None:
        for annotation in content["annotations"]:
            if str(annotation["question_id"]) == short or content["data_subtype"] == "train2014":
                annotation["answers"] = annotation["answers"][:3]

    for split in ("val2014", "train2014"):
        edit(tmp_path / "data" / "vqav2" / f"v2_mscoco_{split}_annotations.json", few)
    one = replace(one)
    problem = "vqa_accuracy compares answers of at least 4 annotators, and it has 3"
    with pytest.raises(ValueError, match=f"1 of 3 items cannot be used: {short}: {problem}"):
        one.check([], tmp_path)
    gaps = replace(one, allow_missing=True)
    # A single answer is enough to calibrate on.
    gaps.check([{"samples": 2, "seed": 0, "batch_size": 2}], tmp_path)
    assert_warned(
        gaps, {item.id: "red" for item in gaps.items}, tmp_path, "1 of 3 items were left out: 1 text cannot be used"
    )
    replace(one, metrics=["gqa_accuracy"]).check([], tmp_path)


def test_files_of_one_name_in_several_folders_are_several_images(tmp_path: Path) -> None:
    images = []
    for number, folder in enumerate(("cats", "dogs", "birds")):
        write_picture(tmp_path / folder / "001.png", number)
        images.append(karpathy_image(number, "test", "001.png", filepath=folder))
    write_json(tmp_path / "dataset_coco.json", {"images": images})
    assert [example.id for example in CocoKarpathy(root=str(tmp_path), split="test")] == [
        "cats/001",
        "dogs/001",
        "birds/001",
    ]
    for image in images:
        image["filename"] = f"{image.pop('filepath')}/001.png"
    write_json(tmp_path / "dataset_flickr30k.json", {"images": images})
    flickr = Flickr30k(root=str(tmp_path), split="test", images=".")
    assert [example.id for example in flickr] == ["cats/001", "dogs/001", "birds/001"]
    assert flickr[1].path == tmp_path / "dogs" / "001.png"


def test_an_image_id_that_two_files_have_is_refused_with_both(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    edit(path, lambda content: content["images"].append({"id": 37, "file_name": "another.jpg"}))
    with pytest.raises(
        ValueError, match=r"two images have the id '37', of .*000000000037\.jpg and .*another\.jpg; each"
    ):
        len(CocoCaptions(root=str(tmp_path), split="val2017"))
    edit(path, lambda content: content["images"][-1].update(id="9"))
    edit(path, lambda content: content["annotations"].append({"image_id": "9", "caption": "text for a number"}))
    with pytest.raises(ValueError, match=r"two images have the id '9'"):
        len(CocoCaptions(root=str(tmp_path), split="val2017"))


def test_a_file_that_two_image_ids_have_is_refused_with_both(tmp_path: Path) -> None:
    def one_file(content: Any) -> None:
        content["images"][1]["file_name"] = content["images"][0]["file_name"]

    edit(write_coco(tmp_path), one_file)
    with pytest.raises(ValueError, match=r"images 37 and 9 have one file_name, '000000000037.jpg'"):
        len(CocoCaptions(root=str(tmp_path), split="val2017"))


def test_ids_that_two_entries_have_are_refused_in_every_reader(tmp_path: Path) -> None:
    images = [karpathy_image(place, "test", name, cocoid=1) for place, name in enumerate(("a.jpg", "b.jpg"))]
    write_json(tmp_path / "dataset_coco.json", {"images": images})
    with pytest.raises(ValueError, match=r"two images have the id '1', of .*a\.jpg and .*b\.jpg"):
        len(CocoKarpathy(root=str(tmp_path), split="test"))
    for image, name in zip(images, ("a.jpg", "a.png"), strict=True):
        del image["cocoid"]
        image["filename"] = name
    write_json(tmp_path / "dataset_flickr30k.json", {"images": images})
    with pytest.raises(ValueError, match=r"two images have the id 'a', of .*a\.jpg and .*a\.png"):
        len(Flickr30k(root=str(tmp_path), split="test"))
    write_vqav2(tmp_path)
    annotations = tmp_path / "v2_mscoco_val2014_annotations.json"
    edit(annotations, lambda content: content["annotations"].append(dict(content["annotations"][0], answers=[])))
    with pytest.raises(ValueError, match=r"annotations\[6\] has the question_id \d+ of an annotation before it"):
        len(VqaV2(root=str(tmp_path), split="val2014"))
    write_gqa(tmp_path)
    questions = tmp_path / "testdev_balanced_questions.json"
    questions.write_text(questions.read_text().replace('"2000001"', '"2000000"'))
    with pytest.raises(ValueError, match=r"has '2000000' twice; each needs its own id"):
        len(Gqa(root=str(tmp_path), split="testdev_balanced"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("imageId", None, r"'2000000'\.imageId has the id null, which is neither a whole number nor text"),
        ("imageId", 7.0, r"'2000000'\.imageId has the id 7\.0, which"),
        ("types", {"structural": None}, r"'2000000' has the structural type null, which is not text"),
        ("types", ["choose"], r"'2000000' has the structural type \[\"choose\"\], which is not text"),
    ],
)
def test_an_id_or_a_kind_of_gqa_that_is_none_is_refused(key: str, value: Any, message: str, tmp_path: Path) -> None:
    edit(write_gqa(tmp_path), lambda content: next(iter(content.values())).update({key: value}))
    with pytest.raises(ValueError, match=rf"testdev_balanced_questions\.json: {message}"):
        len(Gqa(root=str(tmp_path), split="testdev_balanced"))


def test_a_kind_of_vqa_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_vqav2(tmp_path)
    annotations = tmp_path / "v2_mscoco_val2014_annotations.json"
    edit(annotations, lambda content: content["annotations"][2].update(answer_type=None))
    with pytest.raises(ValueError, match=r"annotations\[2\] has the answer_type null, which is not text"):
        len(VqaV2(root=str(tmp_path), split="val2014"))


def test_a_file_of_coco_that_is_no_text_is_refused(tmp_path: Path) -> None:
    edit(write_coco(tmp_path), lambda content: content["images"][1].update(file_name=None))
    with pytest.raises(ValueError, match=r"images\[1\] has the file_name null, which is not text"):
        len(CocoCaptions(root=str(tmp_path), split="val2017"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cocoid", None, "has the id null, which is neither a whole number nor text"),
        ("filepath", None, "has the filepath null, which is not text"),
        ("split", ["test"], r"has the split \[\"test\"\], which is not text"),
        ("split", 3, "has the split 3, which is not text"),
        ("filename", "", "needs a filename that is text"),
    ],
)
def test_fields_of_karpathy_that_are_no_text_are_refused(key: str, value: Any, message: str, tmp_path: Path) -> None:
    image = karpathy_image(1, "test", "a.jpg") | {key: value}
    write_json(tmp_path / "dataset_coco.json", {"images": [karpathy_image(0, "test", "b.jpg"), image]})
    with pytest.raises(ValueError, match=rf"dataset_coco\.json: images\[1\] {message}"):
        len(CocoKarpathy(root=str(tmp_path), split="train"))


@dataclass(frozen=True)
class Unasked:
    """A user's reader with an image about which nothing is asked."""

    split: str
    count: int | None = None
    seed: int | None = None

    def __iter__(self) -> Any:
        from mmq_sweeps.data.scenes import Scenes

        first, second = Scenes(self.split, 2)
        return iter([first, replace(second, questions=() if self.split == "calibration" else second.questions)])


def test_a_calibration_sample_about_which_nothing_is_asked_is_named(composed: Composed, tmp_path: Path) -> None:
    config = composed("task=scenes_vqa", "task.limit=2")
    one = replace(
        build("task", next(iter(plan([config]).configs.values()))["task"]), data={"_target_": f"{__name__}.Unasked"}
    )
    with pytest.raises(
        ValueError, match=r"calibration_split=calibration: 1 of 2 samples have no items, for example 'cal"
    ):
        one.check([{"samples": 2, "seed": 0, "batch_size": 2}], tmp_path)


def test_missing_files_of_one_name_are_all_in_the_record(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = []
    for number, folder in enumerate(("cats", "dogs", "birds")):
        write_picture(tmp_path / "coco_karpathy" / folder / "001.png", number)
        images.append(karpathy_image(number, "test", "001.png", filepath=folder))
    write_json(tmp_path / "coco_karpathy" / "dataset_coco.json", {"images": images})
    for folder in ("cats", "dogs"):
        (tmp_path / "coco_karpathy" / folder / "001.png").unlink()
    monkeypatch.setenv("MMQ_DATA", str(tmp_path))
    config = composed("task=coco_karpathy", "task.limit=3", "task.allow_missing=true", "method=none")
    one = build("task", next(iter(plan([config]).configs.values()))["task"])
    one.check([], tmp_path)
    missing = one.notes()["missing"]
    assert (missing["images"], missing["first"]) == (2, {"cats/001.png": "missing", "dogs/001.png": "missing"})


@dataclass(frozen=True)
class Twins:
    """A user's reader that gives two pictures the same id."""

    split: str
    count: int | None = None
    seed: int | None = None

    def __iter__(self) -> Any:
        from mmq_sweeps.data.scenes import Scenes

        return iter([replace(example, id="twin") for example in Scenes(self.split, 2)])


def test_ids_that_two_items_have_are_refused_whoever_reads_them(composed: Composed, tmp_path: Path) -> None:
    for name, model in (("scenes_caption", "tiny_blip2"), ("scenes_retrieval", "tiny_blip2_itm")):
        config = composed(
            f"task={name}", f"model={model}", "task.limit=2", *["task.shortlist=2"] * (model != "tiny_blip2")
        )
        one = build("task", next(iter(plan([config]).configs.values()))["task"])
        twins = replace(one, data={"_target_": f"{__name__}.Twins"})
        with pytest.raises(ValueError, match="two items have the id 'twin', of twin and twin"):
            twins.check([], tmp_path)


def test_captions_that_two_images_share_are_counted_at_the_recalls(composed: Composed, tmp_path: Path) -> None:
    config = composed("model=tiny_blip2_itm", "task=scenes_retrieval", "task.limit=3", "task.shortlist=3")
    one = build("task", next(iter(plan([config]).configs.values()))["task"])
    first, second, third = one.images
    one.__dict__["_asked"] = [first, replace(second, references=(first.references[0], *second.references[1:])), third]
    ranks = {item: '{"rank": 0}' for image in one.images for item in (image.id, *(f"{image.id}/{n}" for n in range(5)))}
    assert_warned(one, ranks, tmp_path, "2 of 15 texts are equal to a text of another image and tie with it")
    one = replace(one)
    one.__dict__["_asked"] = [first, second, replace(third, references=("", *third.references[1:]))]
    assert_warned(one, ranks, tmp_path, "1 of 15 texts are empty")


def test_images_of_equal_contents_are_counted_at_the_recalls(task: Callable[..., Any], tmp_path: Path) -> None:
    own = (
        "task=flickr30k_retrieval",
        "model=tiny_blip2_itm",
        "component=vision_connector",
        "task.limit=4",
        "task.shortlist=4",
    )
    one = task(*own)
    first, second, *_ = one.images
    second.path.write_bytes(first.path.read_bytes())
    ranks = {item: '{"rank": 0}' for image in one.images for item in (image.id, *(f"{image.id}/{n}" for n in range(5)))}
    assert_warned(one, ranks, tmp_path, "2 of 4 images have the contents of another one and tie with it")


def assert_warned(task: Any, predictions: dict[str, str], cache: Path, warning: str) -> None:
    for result in task.score(predictions, cache).values():
        assert warning in result.warnings


@pytest.mark.parametrize("asked", [("cider", "bleu_4"), ("bleu_4", "cider")])
def test_the_first_metric_that_is_asked_for_is_the_first_of_the_record(
    task: Callable[..., Any], tmp_path: Path, asked: tuple[str, str]
) -> None:
    found = task("task=coco_caption", "task.limit=2", f"task.metrics=[{','.join(asked)}]")
    scores = found.score({item.id: "a dog" for item in found.items}, tmp_path)
    assert tuple(scores) == asked
