"""Tasks over published data sets, in their own layouts on disk: from the files to the record, and refused settings."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from launch.start import run_sweep
from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.model_catalog import model_names, read_model
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.data import published
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.store.store import Store
from tests.data.layouts import write_coco, write_coco_karpathy, write_flickr30k, write_gqa, write_vqav2

Composed = Callable[..., DictConfig]
Task = Callable[..., Any]
SMALL = ("calibration.samples=2", "calibration.batch_size=2", "tracker=none")
TRAINING = (1001, 1002, 1003, 1004)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a few images of every set to the folder that the tasks read."""
    root = tmp_path / "data"
    write_coco(root / "coco_caption")
    write_coco(root / "coco_caption", "train2017", TRAINING)
    write_coco_karpathy(root / "coco_karpathy", ("test", "train", "train", "test", "val"))
    write_flickr30k(root / "flickr30k")
    write_vqav2(root / "vqav2")
    write_vqav2(root / "vqav2", "train2014", TRAINING)
    write_gqa(root / "gqa")
    write_gqa(root / "gqa", "train_balanced", ("n8", "n9", "n10"))
    monkeypatch.setenv("MMQ_DATA", str(root))
    return root


@pytest.fixture
def task(composed: Composed, data: Path) -> Task:  # noqa: ARG001 - the task reads them
    def made(*overrides: str) -> Any:
        return build("task", next(iter(plan([composed(*SMALL, *overrides)]).configs.values()))["task"])

    return made


def cell(composed: Composed, *overrides: str) -> Cell:
    return plan([composed(*SMALL, *overrides)]).cells[-1]


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        (["task=coco_caption", "task.limit=null"], {"cider": 4}),
        (["task=coco_caption", "task.limit=3", "task.metrics=[cider,bleu_1]"], {"cider": 3, "bleu_1": 3}),
        (["task=coco_karpathy"], {"cider": 2}),
        (["task=vqav2", "task.limit=5"], {"vqa_accuracy": 5}),
        (["task=gqa"], {"gqa_accuracy": 6}),
        (
            ["task=flickr30k_retrieval", "task.shortlist=2", "model=tiny_blip2_itm"],
            {f"{side}_recall_at_{k}": n for side, n in (("text", 4), ("image", 20)) for k in (1, 5, 10)},
        ),
    ],
    ids=str,
)
def test_from_the_files_to_the_record(
    composed: Composed, data: Path, overrides: list[str], counts: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    where = data.parent / "runs"
    assert run_sweep([composed(*SMALL, *overrides, "method=rtn", "bits=8", f"store.dir={where}")]) == 0
    capsys.readouterr()
    for record in Store.open(where).records():
        assert {name: metric["count"] for name, metric in record.metrics.items()} == counts
        assert record.notes == {}


def test_answers_are_asked_for_and_scored_by_the_files_own_ids_and_types(task: Task, tmp_path: Path) -> None:
    asked = task("task=vqav2", "task.limit=null")
    items = {item.id: item for item in asked.items}
    assert list(items) == [f"{image}00{turn}" for image in (262148, 42, 393225) for turn in (0, 1)], "image by image"
    assert items["42001"].prompt == "Question: What is 1? Short answer:"
    right = {"number": "Two.", "yes/no": "Yes"}
    result = asked.score({name: right[item.kind] for name, item in items.items()}, tmp_path)["vqa_accuracy"]
    assert result.by_type == {"number": pytest.approx(1.0), "yes/no": pytest.approx(1.0)}
    result = asked.score(dict.fromkeys(items, "maybe"), tmp_path)["vqa_accuracy"]
    assert result.value == pytest.approx(0.6), "two of ten annotators: (8 * 2/3 + 2 * 1/3) / 10"


def test_gqa_is_scored_by_structural_type(task: Task, tmp_path: Path) -> None:
    asked = task("task=gqa")
    answers = {item.id: "The Dark" if item.kind == "choose" else "light" for item in asked.items}
    assert asked.score(answers, tmp_path)["gqa_accuracy"].by_type == {"choose": 1.0, "query": 0.0}


def test_a_cell_is_named_by_what_the_data_are_and_not_by_where_they_lie(composed: Composed, data: Path) -> None:
    here = {
        method: cell(composed, "task=coco_caption", "task.limit=4", f"method={method}") for method in ("rtn", "gptq")
    }
    moved = data.parent / "elsewhere"
    shutil.copytree(data / "coco_caption", moved)
    there = [f"task.data.root={moved}", "task=coco_caption", "task.limit=4"]
    assert cell(composed, *there, "method=rtn").id == here["rtn"].id
    assert str(moved) not in json.dumps(cell(composed, *there).effective)
    training = moved / "annotations" / "captions_train2017.json"
    training.write_text(training.read_text().replace("thing 1001", "another 1001"))
    assert cell(composed, *there, "method=rtn").id == here["rtn"].id, "which draws no calibration samples"
    assert cell(composed, *there, "method=gptq").id != here["gptq"].id
    evaluated = moved / "annotations" / "captions_val2017.json"
    evaluated.write_text(evaluated.read_text().replace("thing 37", "another 37"))
    assert cell(composed, *there, "method=rtn").id != here["rtn"].id
    assert cell(composed, *there, "task.allow_missing=true").id != cell(composed, *there).id


def test_missing_data_are_told_while_planning_with_the_way_out(composed: Composed, data: Path) -> None:
    shutil.rmtree(data / "gqa")
    (data / "coco_caption" / "annotations" / "captions_train2017.json").unlink()
    wanted = [
        composed(*SMALL, f"task={name}", f"method={method}")
        for name, method in (("gqa", "rtn"), ("coco_caption", "gptq"))
    ]
    with pytest.raises(ConfigError) as raised:
        plan(wanted)
    assert len(raised.value.problems) == 2, "all that is missing, at once"
    told = str(raised.value)
    assert f"python -m mmq_sweeps.data prepare gqa --root {data / 'gqa'}" in told
    assert "captions_train2017.json is missing" in told
    assert f"python -m mmq_sweeps.data prepare coco_caption --root {data / 'coco_caption'}" in told
    plan([composed(*SMALL, "task=coco_caption", "method=rtn")])


def test_annotations_of_another_split_and_a_folder_without_images(task: Task, data: Path, tmp_path: Path) -> None:
    shutil.copy(
        data / "vqav2" / "v2_mscoco_train2014_annotations.json", data / "vqav2" / "v2_mscoco_val2014_annotations.json"
    )
    with pytest.raises(ValueError, match="the two files are of different splits"):
        task("task=vqav2", "task.limit=2").check([], tmp_path)
    shutil.rmtree(data / "coco_caption" / "val2017")
    with pytest.raises(ValueError, match=r"there are no images in .*val2017.*python -m mmq_sweeps.data prepare"):
        task("task=coco_caption", "task.limit=4").check([], tmp_path)


def test_calibration_that_is_evaluated_is_refused_by_the_file(task: Task, data: Path, tmp_path: Path) -> None:
    images = data / "coco_caption"
    calibration = {"samples": 4, "seed": 0, "batch_size": 2}
    one = task("task=coco_caption", "task.limit=4")
    one.check([calibration], tmp_path)
    shutil.copy(images / "val2017" / "000000000037.jpg", images / "train2017" / f"{TRAINING[2]:012d}.jpg")
    with pytest.raises(ValueError, match=r"1 calibration samples are also evaluated in task.split=val2017 \(1003\)"):
        one.check([calibration], tmp_path)


def test_a_calibration_sample_that_cannot_be_used_is_never_left_out(task: Task, data: Path, tmp_path: Path) -> None:
    (data / "coco_caption" / "train2017" / f"{TRAINING[1]:012d}.jpg").write_bytes(b"")
    one = task("task=coco_caption", "task.limit=4", "task.allow_missing=true")
    with pytest.raises(ValueError, match=r"calibration_split=train2017: 1 of 4 images cannot be used \(1 empty\)"):
        one.check([{"samples": 4, "seed": 0, "batch_size": 2}], tmp_path)


def test_a_truncated_image_is_an_error_and_may_be_gone_without(
    data: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    image = data / "coco_caption" / "val2017" / "000000000139.jpg"
    image.write_bytes(image.read_bytes()[:-150])
    arguments = ("task=coco_caption", "task.limit=4", "method=rtn", "bits=8", *SMALL, "--json")
    refused = command(*arguments)
    assert refused.returncode == 2
    assert "1 of 4 images cannot be used (1 truncated)" in refused.stderr
    assert str(image) in refused.stderr
    assert "task.allow_missing=true" in refused.stderr
    assert refused.stderr.count("\n") == 1
    done = command(*arguments, "task.allow_missing=true")
    assert done.returncode == 0, done.stderr
    records = list(Store.open(Path(json.loads(done.stdout)["store"])).records())
    assert len(records) == 2
    for record in records:
        assert record.metrics["cider"]["count"] == 3
        missing = {"images": 1, "of": 4, "first": {"000000000139.jpg": "truncated"}, "items": 1}
        assert record.notes["missing"] == missing


def test_without_any_image_left_there_is_nothing_to_measure(task: Task, data: Path, tmp_path: Path) -> None:
    for image in (data / "gqa" / "images").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2 of 2 images cannot be used \(2 not an image\).* None is left"):
        task("task=gqa", "task.allow_missing=true").check([], tmp_path)


def test_questions_of_a_missing_image_are_left_out_together(task: Task, data: Path, tmp_path: Path) -> None:
    (data / "vqav2" / "val2014" / "COCO_val2014_000000000042.jpg").unlink()
    one = task("task=vqav2", "task.limit=5", "task.allow_missing=true")
    one.check([], tmp_path)
    assert [item.id for item in one.items] == ["262148000", "262148001", "393225000"]
    expected = {"images": 1, "of": 3, "first": {"COCO_val2014_000000000042.jpg": "missing"}, "items": 2}
    assert one.notes() == {"missing": expected}


@pytest.mark.parametrize("name", ["coco_caption", "vqav2"])
def test_decoded_images_are_not_kept(
    name: str, task: Task, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = task(f"task={name}", "task.limit=3", "task.batch_size=1")
    one.check([], tmp_path)
    original = published.open_image
    decoded: list[weakref.ref] = []
    alive: list[int] = []

    def counted(path: Path) -> Any:
        image = original(path)
        decoded.append(weakref.ref(image))
        alive.append(sum(kept() is not None for kept in decoded))
        return image

    monkeypatch.setattr(published, "open_image", counted)
    assert len(one.predict(loaded, lambda done, total: None)) == 3
    gc.collect()
    assert not any(kept() for kept in decoded)
    assert len(alive) == 3
    assert max(alive) <= 2, "the image that is worked on, and the one prepared meanwhile"


def test_every_model_that_is_asked_says_how() -> None:
    """Check the prompts that a task takes from its model; the test of the study's settings checks that it takes them."""
    asked = [name for name in model_names() if read_model_prompts(name)]
    assert len(asked) >= 10
    for name in asked:
        model = read_model(name)
        for kind in ("caption", "question"):
            generation = model["generation"][kind]
            assert ("{question}" in model["prompts"][kind]) == (kind == "question"), name
            assert generation["max_new_tokens"] > 0
            assert generation["num_beams"] == (5 if (name, kind) == ("blip2_opt_2_7b", "question") else 1)


def read_model_prompts(name: str) -> dict[str, str]:
    return {} if name == "custom" else read_model(name)["prompts"]


def test_the_prompts_and_settings_of_the_study(composed: Composed) -> None:
    blip2 = composed("model=blip2_opt_2_7b", "task=vqav2").task
    assert blip2.prompt == "Question: {question} Short answer:"
    assert dict(blip2.generation).items() >= {"num_beams": 5, "max_new_tokens": 10, "length_penalty": 0.0}.items()
    for name in ("llava_1_5_7b", "llava_1_5_13b"):
        llava = composed(f"model={name}", "task=gqa").task
        assert llava.prompt == (
            "USER: <image>\n{question}\nAnswer the question using a single word or phrase. ASSISTANT:"
        )
        assert dict(llava.generation).items() >= {"num_beams": 1, "do_sample": False}.items()
