"""The benchmarks of conf/task on copies with their real columns: prompts as lmms-eval's, and a cell's answers end to end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.model_catalog import read_model
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.tasks.benchmark import BenchmarkTask
from tests.data.hub_folders import scenes, write_own
from tests.metrics.lmms import lmms

Composed = Callable[..., DictConfig]
Rows = list[dict[str, Any]]
CALIBRATION = {"samples": 2, "batch_size": 2, "seed": 0}
KINDS = ("count", "code_reasoning")
# Where lmms-eval has a benchmark: its yaml, and the function that writes a prompt.
THEIRS = {
    "docvqa": ("docvqa/docvqa_val.yaml", "docvqa"),
    "chartqa": ("chartqa/chartqa.yaml", "chartqa"),
    "textvqa": ("textvqa/textvqa_val.yaml", "textvqa"),
    "vizwiz": ("vizwiz_vqa/vizwiz_vqa_val.yaml", "vizwiz_vqa"),
    "ocrbench": ("ocrbench/ocrbench.yaml", "ocrbench"),
    "mmbench": ("mmbench/mmbench_en_dev.yaml", "mmbench"),
    "mmmu": ("mmmu/mmmu_val.yaml", "mmmu"),
    "scienceqa": ("scienceqa/scienceqa_img.yaml", "sqa"),
    "pope": ("pope/pope.yaml", "pope"),
    "mme": ("mme/mme.yaml", "mme"),
}


def rows_of(name: str, pictures: Iterator[Any], split: str) -> Rows:
    """Make rows with the columns of the benchmark's data set and invented content."""
    return [_row(name, place, next(pictures), split) for place in range(6)]


def _row(name: str, place: int, image: Any, split: str) -> dict[str, Any]:
    asked = f"what is the colour of circle {place}, naïvely?"
    if name == "docvqa":
        return {"questionId": str(place), "question": asked, "question_types": ["layout"], "image": image, "docId": place,
                "ucsf_document_id": "x", "ucsf_document_page_no": "1", "answers": ["red", "Red 1"],
                "data_split": "val"}  # fmt: skip
    if name == "chartqa":
        kind = "human_test" if place % 2 else "augmented_test"
        return {"type": kind, "question": asked, "answer": "12.5%", "image": image}
    if name == "textvqa":
        return {"image_id": f"i{place // 2}", "question_id": place, "question": asked, "image": image,
                "answers": ["red"] * 9 + ["Blue"], "ocr_tokens": ["STOP"]}  # fmt: skip
    if name == "vizwiz":
        return {"question_id": f"VizWiz_{place}.jpg", "image": image, "question": f"{asked} Please.", "answers": ["red"] * 10,
                "category": "other"}  # fmt: skip
    if name == "ocrbench":
        return {"dataset": "HME100k", "question": f" {asked}", "image": image, "answer": ["x ^ { 2 }"],
                "question_type": "Handwritten Mathematical Expression Recognition"}  # fmt: skip
    if name == "mmbench":
        return {"index": place, "question": asked, "hint": "Look." if place % 2 else "nan", "answer": "AB"[place % 2],
                "A": "red", "B": "no {question}", "C": "nan" if place % 3 else "blue", "D": "nan" if place else "green",
                "category": "colour", "image": image, "source": "s", "L2-category": "l", "comment": "nan",
                "split": split}  # fmt: skip
    if name == "mmmu":
        choice = place % 3 > 0
        numbered = {f"image_{number}": None for number in range(1, 8)}
        return {"id": f"{split}_Art_{place}", "question": f"In <image 1>, {asked}",
                "options": "['red', \"it's\"]" if choice else "[]", "explanation": "", **numbered, "image_1": image,
                "img_type": "['Photo']",
                "answer": "B" if choice else "['2', 'two']", "topic_difficulty": "Easy",
                "question_type": "multiple-choice" if choice else "open", "subfield": "Drawing"}  # fmt: skip
    if name == "scienceqa":
        return {"image": image, "question": asked, "choices": ["red", "blue", "green"][: 2 + place % 2], "answer": place % 2,
                "hint": "Light is a wave." if place % 2 else "", "task": "t", "grade": "g", "subject": "natural science",
                "topic": "physics", "category": "c", "skill": "s", "lecture": "l", "solution": "s"}  # fmt: skip
    if name == "pope":
        return {"id": str(place), "question_id": str(place), "question": "Is there a circle in the image?",
                "answer": ("yes", "no")[place % 2], "image_source": f"COCO_{place}", "image": image,
                "category": "popular"}  # fmt: skip
    kind = KINDS[place % 2]
    return {"question_id": f"{kind}/{place}.png", "image": image, "category": kind, "answer": "Yes",
            "question": f"Is circle {place} red? Please answer yes or no."}  # fmt: skip


def doubled(name: str, rows: Rows) -> Rows:
    """Ask two questions about each picture if the benchmark does."""
    if name != "mme":
        return rows
    other = {"answer": "No", "question": "Is it blue? Please answer yes or no."}
    return [one for row in rows for one in (row, {**row, **other})]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Write a folder of Parquet for each benchmark, with its splits as on the Hub."""
    return {name: write(tmp_path_factory.mktemp(name), name) for name in THEIRS}


def write(folder: Path, name: str) -> Path:
    import datasets

    own = settings(name)
    for split in dict.fromkeys((own["split"], own["calibration_split"])):
        drawn = iter(scenes(12, "evaluation" if split == own["split"] else "calibration"))
        rows = doubled(name, rows_of(name, drawn, split))
        if name == "mmmu":
            rows[1]["image_2"] = next(drawn)
            rows[1]["question"] += " And <image 2>?"
        table = datasets.Dataset.from_list(
            [{key: None if is_image(key) else one for key, one in row.items()} for row in rows]
        )
        for column in filter(is_image, rows[0]):
            images = datasets.Dataset.from_dict(
                {column: [row[column] for row in rows]}, datasets.Features({column: datasets.Image()})
            )
            table = datasets.concatenate_datasets([table.remove_columns(column), images], axis=1)
        path = folder / own["data"].get("name", "data") / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        table.to_parquet(path)
    return folder


def is_image(column: str) -> bool:
    return column == "image" or (column.startswith("image_") and column[6:].isdigit())


def settings(name: str) -> dict[str, Any]:
    path = Path(__file__).parents[2] / "conf" / "task" / f"{name}.yaml"
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


@pytest.fixture
def task(composed: Composed, folders: Mapping[str, Path]) -> Callable[..., BenchmarkTask]:
    def made(name: str, *overrides: str) -> BenchmarkTask:
        config = composed(
            f"task={name}", f"task.data.path={folders[name]}", "model=tiny_llava", "calibration.samples=2",
            "task.generation.max_new_tokens=4", "tracker=none", *overrides,
        )  # fmt: skip
        return build("task", next(iter(plan([config]).configs.values()))["task"])

    return made


@pytest.fixture(scope="module")
def llava() -> LoadedModel:
    with quiet_libraries():
        return load_model(read_model("tiny_llava"))


@pytest.mark.parametrize("name", THEIRS)
def test_a_copy_of_a_benchmark_is_asked_and_scored(
    task: Callable[..., BenchmarkTask], llava: LoadedModel, tmp_path: Path, name: str
) -> None:
    one = task(name)
    one.check([CALIBRATION], tmp_path)
    shared = one.split == one.calibration_split
    assert len(one.items) == {False: 6, True: 4}[shared] * (2 if name == "mme" else 1)
    assert list(one.calibration_batches(llava, CALIBRATION))
    said = one.predict(llava, lambda done, total: None)
    found = one.score(said, tmp_path)
    assert list(found) == list(settings(name)["metrics"])
    assert all(result.interval[0] <= result.value <= result.interval[1] for result in found.values())
    right = {item.id: item.references[0] for item in one.items}
    best = one.score(right, tmp_path)
    first = next(iter(best.values()))
    assert first.value == pytest.approx({"mme": 400.0}.get(name, 1.0)), "the right answers are right"
    assert set(first.by_type) == {item.kind for item in one.items}


@pytest.mark.parametrize("name", THEIRS)
def test_what_is_asked_and_where_it_lies_is_as_in_lmms_eval(task: Callable[..., BenchmarkTask], name: str) -> None:
    path, prefix = THEIRS[name]
    library = Path(lmms("tasks").__file__).parent
    theirs, ours = read(library / path), settings(name)
    # MME's authors put their instruction into each question; lmms-eval's variant without an instruction leaves it there.
    told = theirs["lmms_eval_specific_kwargs"]["plm" if name == "mme" else "default"]
    module = "tasks.mmbench.en_utils" if name == "mmbench" else f"tasks.{path.partition('/')[0]}.utils"
    ask = getattr(lmms(module), f"{prefix}_doc_to_text")
    one = task(name, "++task.apart_from=null")
    drawn = iter(scenes(12))
    documents = doubled(name, rows_of(name, drawn, ours["split"]))
    if name == "mmmu":
        documents[1]["question"] += " And <image 2>?"
    asked = [ask(copy.deepcopy(document), told) for document in documents]
    # Blanks at the ends of a question are left alone here.
    assert [text_of(item.question, name) for item in one.items] == asked
    assert (ours["data"]["path"], ours["data"].get("name")) == (theirs["dataset_path"], theirs.get("dataset_name"))
    assert ours["split"] == theirs["test_split"]
    if (most := theirs.get("generation_kwargs", {}).get("max_new_tokens", 1024)) < 1024:
        assert ours["generation"]["max_new_tokens"] == most


def text_of(question: Any, name: str) -> str:
    return str(question).strip() if name == "ocrbench" else str(question)


def read(path: Path) -> dict[str, Any]:
    """Read a yaml of lmms-eval and the file that it includes; functions are None."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: None)
    found = yaml.load(path.read_text(), Loader)
    return (read(path.with_name(found["include"])) if "include" in found else {}) | found


def test_several_pictures_and_a_list_of_answers_of_mmmu(task: Callable[..., BenchmarkTask]) -> None:
    one = task("mmmu")
    assert [len(item.example.images) for item in one.items] == [1, 2, 1, 1, 1, 1]
    assert [item.references for item in one.items[:2]] == [("2", "two"), ("B",)]
    assert one.items[1].options == ("red", "it's")


def test_two_questions_about_a_picture_are_drawn_together(task: Callable[..., BenchmarkTask], tmp_path: Path) -> None:
    one = task("mme", "++task.apart_from=null", "task.metrics=[mme]")
    found = one.score({item.id: "yes" for item in one.items}, tmp_path)["mme"]
    assert found.value == 100.0, "half of each kind's questions, and no picture's both"
    assert len(set(found.groups.values())) == 6


def test_calibration_samples_that_would_be_evaluated_are_refused(
    task: Callable[..., BenchmarkTask], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"2 calibration samples are also evaluated in task.split=test"):
        task("pope", "++task.apart_from=null").check([CALIBRATION], tmp_path)


def test_a_missing_picture_is_left_out_beside_those_of_calibration_samples(composed: Composed, tmp_path: Path) -> None:
    own = write_own(tmp_path / "own", count=6)
    for name in ("test_1", "test_4"):
        (own / "pictures" / f"{name}.png").unlink()
    fields = (f"data.path={own}", "data.answers=answer", "split=test", "calibration_split=test", "metrics=[anls]")

    def made(*more: str) -> BenchmarkTask:
        config = composed(
            "model=tiny_llava", "task=ocrbench", *(f"++task.{one}" for one in (*fields, "data.kind=null", *more))
        )
        return build("task", next(iter(plan([config]).configs.values()))["task"])

    with pytest.raises(
        ValueError, match=r"images cannot be used \(\d missing\): row \d of .*, split test, .*test_\d.png"
    ):
        made("apart_from.samples=1").check([], tmp_path)
    one = made("apart_from.samples=1", "allow_missing=true")
    one.check([], tmp_path)
    assert {"test-1", "test-4"}.isdisjoint(item.id for item in one.items)
    with pytest.raises(ValueError, match=r"calibration.samples=9: .*count=9, but it has 6 rows"):
        _ = made("apart_from.samples=9").items


def test_a_name_of_the_hub_needs_its_commit(composed: Composed, tmp_path: Path) -> None:  # noqa: ARG001
    from mmq_sweeps.errors import ConfigError

    with pytest.raises((ConfigError, ValueError), match=r"revision=null: path=lmms-lab-encoder/POPE is no folder here"):
        plan([composed("task=pope", "model=tiny_llava", "tracker=none")])
