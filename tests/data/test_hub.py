"""The reader of any data set: the example it makes of a row, the fields that enter an id, and the errors of bad settings."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants
from omegaconf import DictConfig
from PIL import Image

from mmq_sweeps.config.sweep import plan
from mmq_sweeps.data import images
from mmq_sweeps.data.__main__ import main
from mmq_sweeps.data.hub import HubData, columns, dataset
from mmq_sweeps.data.hub.dataset import Question
from mmq_sweeps.errors import ConfigError
from tests.data.hub_folders import COMMIT, png, write_lines, write_own, write_parquet

Composed = Callable[..., DictConfig]
COLOURS = ("red", "green", "blue")
FEATURES = {
    "image": datasets.Image(),
    "second": datasets.Image(),
    "asked": datasets.Value("string"),
    "answers": {"text": datasets.List(datasets.Value("string"))},
    "label": datasets.ClassLabel(names=["no", "yes"]),
    "number": datasets.Value("float64"),
    "options": datasets.List(datasets.Value("string")),
    "written": datasets.Value("string"),
    "A": datasets.Value("string"),
    "B": datasets.Value("string"),
    "id": datasets.Value("int64"),
}


def colour(name: str) -> Image.Image:
    return Image.new("RGB", (6, 4), name)


def rows() -> list[dict[str, Any]]:
    """Return three rows, with one image, two and none."""
    shown = [("red", None), ("green", "blue"), (None, None)]
    return [
        {
            "image": None if first is None else colour(first),
            "second": None if second is None else colour(second),
            "asked": f"what, {place}?",
            "answers": {"text": ["this", "that"][: place + 1]},
            "label": place % 2,
            "number": place * 1.25,
            "options": ["one", "two"],
            "written": "['one', 'two', 'three']",
            "A": "one",
            "B": "nan" if place else "two",
            "id": 100 + place,
        }
        for place, (first, second) in enumerate(shown)
    ]


@pytest.fixture(scope="session")
def table() -> datasets.Dataset:
    return datasets.Dataset.from_list(rows(), features=datasets.Features(FEATURES))


@pytest.fixture(scope="session")
def parquet(table: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parquet")
    table.to_parquet(folder / "test.parquet")
    table.to_parquet(folder / "train.parquet")
    return folder


def read(path: Path | str, **fields: Any) -> HubData:
    usual = {"split": "test", "question": "asked", "answers": "answers.text"}
    return HubData(path=str(path), **usual | fields)


def shown(row: Any) -> list[tuple[int, ...]]:
    return [image.getpixel((0, 0)) for image in row.images]


def test_a_row_is_an_item_with_its_images_and_its_question(parquet: Path) -> None:
    first, second, third = read(parquet, image=["image", "second"], id="id", kind="label", choices="options")
    assert [len(row.images) for row in (first, second, third)] == [1, 2, 0]
    assert shown(second) == [(0, 128, 0), (0, 0, 255)]
    assert second.image.getpixel((0, 0)) == (0, 128, 0)
    assert (third.image, third.path) == (None, None)
    assert second.questions == (Question("101", "what, 1?", ("this", "that"), "yes", ("one", "two")),)
    assert second.references == ("this", "that")
    assert first.group != second.group
    assert third.group == third.id == "102"


def test_gptq_columns_are_text_numbers_labels_and_options(parquet: Path) -> None:
    def asked(**fields: Any) -> list[Question]:
        return [row.questions[0] for row in read(parquet, **fields)]

    assert [one.answers for one in asked(answers="number")] == [("0",), ("1.25",), ("2.5",)]
    assert [one.answers for one in asked(answers="label")] == [("no",), ("yes",), ("no",)]
    assert asked(choices="written")[0].options == ("one", "two", "three")
    assert [one.options for one in asked(choices=["A", "B"])] == [("one", "two"), ("one",), ("one",)]
    assert asked(context=["A", "written"])[0].context == "one\n['one', 'two', 'three']"
    assert [row.group for row in read(parquet, group="A")] == ["one"] * 3
    assert [row.id for row in read(parquet)] == ["test/0", "test/1", "test/2"]
    assert next((row.questions, row.references) for row in read(parquet, question=None, answers="A")) == ((), ("one",))


def test_lines_of_json_may_mix_texts_and_lists(tmp_path: Path) -> None:
    mixed = ["a", ["a", "b"], 3, None, {"x": 1}]
    pictures = ["1.png", ["1.png", "2.png"], None, "", "1.png"]
    write_lines(
        tmp_path,
        "test",
        [{"asked": "?", "answers": one, "image": two} for one, two in zip(mixed, pictures, strict=True)],
    )
    found = list(read(tmp_path, answers="answers"))
    assert [row.references for row in found] == [("a",), ("a", "b"), ("3",), (), ({"x": 1},)]
    assert [[path.name for path in row.pictures] for row in found] == [
        ["1.png"], ["1.png", "2.png"], [], [], ["1.png"],
    ]  # fmt: skip


def test_each_layout_gives_the_same_rows(table: datasets.Dataset, parquet: Path, tmp_path: Path) -> None:
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "dict"))
    named = [{**row, "image": None, "second": None} for row in rows()]
    for row, names in zip(named, (["red"], ["green", "blue"], []), strict=True):
        row["images"] = [f"{name}.png" for name in names]
    for name in COLOURS:
        colour(name).save(tmp_path / f"{name}.png")
    write_lines(tmp_path / "lines", "test", named)
    both = ["image", "second"]
    found = [
        [(row.questions, shown(row), row.references) for row in reader]
        for reader in (
            read(parquet, image=both, id="id"),
            read(tmp_path / "one", image=both, id="id", split="train"),
            read(tmp_path / "dict", image=both, id="id"),
            read(tmp_path / "lines", image="images", id="id", images=".."),
        )
    ]
    assert found[0] == found[1] == found[2] == found[3]


def test_folders_of_pictures_have_their_names_for_ids_and_classes(tmp_path: Path) -> None:
    for place, name in enumerate(COLOURS):
        path = tmp_path / "classes" / "test" / ("warm" if name == "red" else "cold") / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour(name).save(path)
        path = tmp_path / "told" / f"{place}.png"
        path.parent.mkdir(exist_ok=True)
        colour(name).save(path)
    classes = read(tmp_path / "classes", question=None, answers="label")
    assert {row.id: row.references for row in classes} == {
        "test/warm/red.png": ("warm",), "test/cold/green.png": ("cold",), "test/cold/blue.png": ("cold",),
    }  # fmt: skip
    lines = [{"file_name": f"{place}.png", "asked": "which?", "answer": name} for place, name in enumerate(COLOURS)]
    write_lines(tmp_path / "told", "metadata", lines)
    told = read(tmp_path / "told", split="train", answers="answer")
    assert [(row.id, row.references, shown(row)) for row in told][2] == ("2.png", ("blue",), [(0, 0, 255)])


def test_csv_and_splits_in_ranges(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("asked,answers\n" + "".join(f"what {place}?,{place}\n" for place in range(10)))
    shutil.copy(tmp_path / "test.csv", tmp_path / "dev.csv")

    def ids(split: str, **fields: Any) -> list[str]:
        return [row.id for row in read(tmp_path, split=split, answers="answers", image=None, **fields)]

    assert ids("test[:20%]+dev[-1:]") == ["test/0", "test/1", "dev/9"]
    drawn = ids("test", seed=3)
    assert sorted(drawn) == ids("test")
    assert drawn != ids("test")
    assert ids("test", seed=3, count=4) == drawn[:4], "a smaller sample begins a larger one"
    assert ids("test", count=2) == ["test/0", "test/1"]
    reader = read(tmp_path, answers="answers", image=None, count=3)
    assert (len(reader), reader[2].id) == (3, "test/2")


def test_csv_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("asked,answers,A,B,C\nNA,007,None,1.10,\n1,true,null,n/a,x\n2,,a,b,c\n")
    rows = read(tmp_path, answers="answers", image=None, choices=["A", "B", "C"])
    found = [(asked.question, asked.answers, asked.options) for row in rows for asked in row.questions]
    assert found == [
        ("NA", ("007",), ("None", "1.10")),
        ("1", ("true",), ("null", "n/a", "x")),
        ("2", (), ("a", "b", "c")),
    ]


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_bytes('{"asked": "où?", "answers": "là"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"split=test: holds a text that is not in UTF-8 .*save the file so"):
        list(read(tmp_path, answers="answers", image=None))


def test_an_option_that_is_missing_between_others_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path, "test", [{"asked": "?", "answers": "C", "A": "x", "B": "nan", "C": "y", "D": "nan"}])
    with pytest.raises(
        ValueError, match=r"row 0 of .*choices=\[A,B,C,D\]: option 2 is missing, and one behind it is not"
    ):
        list(read(tmp_path, answers="answers", image=None, choices=["A", "B", "C", "D"]))


def test_nothing_is_decoded_before_it_is_asked_for(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_of = columns.ImageColumn.read
    asked: list[int] = []
    monkeypatch.setattr(
        columns.ImageColumn, "read", lambda self, row, place: asked.append(place) or read_of(self, row, place)
    )
    kept = list(read(parquet, image=["image", "second"]))
    assert [len(row.pictures) for row in kept] == [1, 2, 0]
    assert not asked
    assert kept[1].image.size == (6, 4)
    assert len(asked) == 1, "one image is asked for, one is read"


def test_images_inside_a_file_are_judged_as_files_are(tmp_path: Path) -> None:
    whole = png(Image.effect_noise((64, 64), 90))
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    encoded = [whole, whole[:900], b"", b"no image", None]
    given = [{"image": {"bytes": one, "path": None}} for one in encoded]
    datasets.Dataset.from_list(given, features=features).to_parquet(tmp_path / "test.parquet")
    found = list(read(tmp_path, question=None, answers=None))
    pictures = [picture for row in found for picture in row.pictures]
    cache = tmp_path / "images.json"
    verdicts = [verdict.problem for verdict in images.inspect(pictures, cache).values()]
    assert verdicts == [None, "truncated", "empty", "not an image"]
    assert [one.problem for one in images.inspect(pictures, cache).values()] == verdicts, "from the cache"
    with pytest.raises(images.ImageError, match=rf"row 1 of {tmp_path}, split test, image: truncated"):
        found[1].images  # noqa: B018
    assert not found[4].pictures


# The fields that enter an id.


def ids(composed: Composed, path: Path, *overrides: str) -> tuple[str, str | None]:
    """Return the id of a calibrated cell, and the id of its calibration data."""
    own = [
        "task=scenes_vqa", "method=gptq", "task.data._target_=HubData", f"+task.data.path={path}", "~task.data.seed",
        "+task.data.answers=answer", "task.split=test", "task.calibration_split=train", "task.limit=null",
        "calibration.samples=4",
    ]  # fmt: skip
    cell = plan([composed(*own, *overrides)]).cells[-1]
    assert cell.calibration is not None
    return cell.id, cell.calibration["files"]


def test_the_same_rows_elsewhere_have_the_same_id(composed: Composed, tmp_path: Path) -> None:
    own = write_own(tmp_path / "mine")
    first = ids(composed, own)
    shutil.copytree(own, tmp_path / "moved" / "away")
    assert ids(composed, tmp_path / "moved" / "away") == first
    assert ids(composed, own, "task.name=other", "+task.data.images=${task.data.path}") == first, "labels"
    assert ids(composed, own, "+task.data.id=id")[0] != first[0]
    kinds = ids(composed, own, "+task.data.kind=id")
    assert kinds[0] != first[0]
    assert kinds[1] == first[1], "how answers are counted does not change what is calibrated"


@pytest.mark.parametrize("changed", ["pictures/test_1.png", "test.jsonl", "pictures/train_0.png"])
def test_a_changed_byte_is_another_id(composed: Composed, tmp_path: Path, changed: str) -> None:
    own = write_own(tmp_path / "mine")
    before = ids(composed, own)
    path = own / changed
    status, content = path.stat(), bytearray(path.read_bytes())
    content[content.index(b"two") if changed.endswith("jsonl") else -20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = ids(composed, own)
    assert after[0] != before[0]
    assert (after[1] != before[1]) == ("train" in changed)
    if changed.endswith("jsonl"):
        # The library's own copy goes by the time of a change, which is as before.
        assert next(row.references for row in read(own, question="question", answers="answer")) == ("uwo",)


# The Hub.


@pytest.fixture
def cached(tmp_path: Path, parquet: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put ``someone/asked`` into the cache as ``hf download`` does, and cut the network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "hub" / "datasets--someone--asked"
    shutil.copytree(parquet, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


def test_a_pinned_commit_is_read_from_the_cache(cached: Path, parquet: Path, composed: Composed) -> None:
    pinned = read("someone/asked", revision=COMMIT)
    assert [(row.questions, shown(row)) for row in pinned] == [(row.questions, shown(row)) for row in read(parquet)]
    columns = ["+task.data.question=asked", "task.data.answers=answers.text"]
    here = ids(composed, parquet, *columns)
    there = ids(composed, Path("someone/asked"), *columns, f"+task.data.revision={COMMIT}")
    assert here[0] != there[0], "the revision is part of it"
    (cached / "README.md").write_text(
        "---\ndataset_info:\n  splits:\n  - name: test\n    num_examples: 4\n  - name: train\n    num_examples: 3\n---\n"
    )
    with pytest.raises(
        ValueError, match=r"its README.md says 4 rows, and the files here have 3; get the others as well"
    ):
        read("someone/asked", revision=COMMIT).sources()
    assert len(read("someone/asked", revision=COMMIT, split="train")) == 3


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_branch_is_refused_with_its_commit(cached: Path, revision: str | None) -> None:
    assert cached.is_dir()
    message = (
        f"revision={revision or 'null'}: path=someone/asked is no folder here but a name on the Hub, whose rows may"
    )
    with pytest.raises(ValueError, match=message) as refused:
        read("someone/asked", revision=revision).sources()
    assert f"task.data.revision={COMMIT}, its commit now" in str(refused.value)
    with pytest.raises(ValueError, match=r"git ls-remote https://huggingface\.co/datasets/someone/else"):
        read("someone/else", revision=revision).sources()


def test_what_is_not_cached_says_how_to_download_it(cached: Path) -> None:
    assert cached.is_dir()
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE forbids asking the Hub") as refused:
        read("someone/asked", revision="f" * 40).sources()
    assert f"hf download --repo-type dataset someone/asked --revision {'f' * 40}" in str(refused.value)
    with pytest.raises(
        ValueError, match=r"of its cached files: split=dev: there is no such split; the splits there: test"
    ):
        read("someone/asked", revision=COMMIT, split="dev").sources()


# Settings that are refused.

BAD: list[tuple[Mapping[str, Any], str]] = [
    ({"image": "picture"}, "image=picture: there is no such column; the columns there: image, second, asked, answers, label"),
    ({"question": "question"}, "question=question: there is no such column; the columns there: image, second, asked"),
    ({"answers": "answers"}, "answers=answers: each value has several fields; choose one: answers=answers.text"),
    ({"answers": "answers.txt"}, "answers=answers.txt: there is no answers.txt; answers has text"),
    ({"image": "label"}, "image=label: holds int64, which is no image (encoded bytes, or the path of a file); columns of"),
    ({"choices": "asked"}, "choices=asked is 'what, 0?', no list of texts"),
    ({"split": "val"}, "split=val: there is no such split; the splits there: test, train"),
    ({"split": "test[5:]"}, "split=test[5:]: has no rows"),
    ({"split": "test[x]"}, "split=test[x]: Unrecognized instruction format"),
    ({"revision": "main"}, "which has no revisions; leave it null"),
    ({"count": 4}, "count=4, but it has 3 rows; choose 1 to 3"),
    ({"seed": -1}, "seed=-1: choose an integer from 0"),
    ({"image": 3}, "image=3: give the name of a column, a list of names, or null"),
    ({"kind": ["A"]}, "kind=['A']: give the name of a column, or null"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_bad_fields_are_named_with_the_choices(parquet: Path, fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        list(read(parquet, **fields))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nowhere", "path=./nowhere: there is no such folder, and it is no name on the Hub (OWNER/NAME)"),
        ("test.csv", "is a file; give its folder (., and its name as the split"),
    ],
)
def test_a_path_that_is_no_folder_is_refused(
    path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.csv").write_text("asked\n")
    with pytest.raises(ValueError, match=re.escape(message.replace("(.,", "(.),"))):
        read(path).sources()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"id": 1}, {"id": None}],
            "row 1 of .*, split test: id=id is null; each row needs a text or a whole number there",
        ),
        (
            [{"id": 1, "image": "http://a/b.png"}],
            "row 0 of .*: image=image is the address http://a/b.png; download its images",
        ),
        (
            [{"id": 1, "image": "data:image/png;base64,iVBO"}],
            "row 0 of .*: image=image is 'data:.*no path; if it is an image in base",
        ),
        ([{"id": 1, "image": "iVBO" * 100}], "row 0 of .*: image=image is 'iVBO.*a text of 400 characters and no path"),
        ([], "test.jsonl: has no rows"),
        (
            [{"id": 1, "image": "a.png"}, {"id": 2, "image": [True]}],
            "row 1 of .*image=image is True, no path of an image",
        ),
    ],
)
def test_rows_that_cannot_be_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    write_lines(tmp_path, "test", [{"answers": "a", "image": "", "asked": "?", **row} for row in rows])
    with pytest.raises(ValueError, match=message):
        list(read(tmp_path, id="id", answers="answers"))


def test_a_reader_is_named_by_its_class_alone(composed: Composed, tmp_path: Path) -> None:
    own = write_own(tmp_path / "mine")
    dotted = "task.data._target_=mmq_sweeps.data.hub.HubData"
    assert ids(composed, own) == ids(composed, own, dotted)
    with pytest.raises(
        ConfigError, match=r"task.data._target_=HubDatum: Unknown reader 'HubDatum'. Did you mean HubData"
    ):
        ids(composed, own, "task.data._target_=HubDatum")
    write_lines(own, "test", [{"answer": "a", "question": "b"}])
    with pytest.raises(ConfigError, match=r"task.data: path=.*, split=test: image=image: there is no such column"):
        ids(composed, own)


def test_gptq_columns_are_shown_before_a_yaml_is_written(parquet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(parquet), "--split", "test"]) == 0
    first, second, *lines = capsys.readouterr().out.splitlines()
    assert (first, second) == ("splits here: test, train", f"test: 3 rows, parquet, in {parquet}")
    assert [line.split()[0] for line in lines] == list(FEATURES)
    assert re.fullmatch(r" +asked +string +'what, 0\?'", lines[2])
    assert "bytes: 75 bytes" in lines[0]
    assert main(["show", "someone/asked", "--split", "test"]) == 1
    assert "revision=null: path=someone/asked is no folder here" in capsys.readouterr().err


def test_short_names_are_those_of_the_readers() -> None:
    from mmq_sweeps.config.instantiate import READERS, find_class
    from mmq_sweeps.data.readers import READERS as KNOWN

    assert {find_class("task.data._target_", name) for name in READERS} == set(KNOWN.values())


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'mmq-sweeps\[hub\]'"):
        dataset.library()


def test_parquet_of_lists_of_images(tmp_path: Path) -> None:
    write_parquet(tmp_path, [[colour("red"), colour("blue")], [], [colour("green")]])
    found = list(read(tmp_path, image="images", question="question", answers="answers"))
    assert [shown(row) for row in found] == [[(255, 0, 0), (0, 0, 255)], [], [(0, 128, 0)]]
    assert json.loads(json.dumps(found[0].questions[0].answers)) == ["red", "a red one"]
