"""The files of a split are found by their names and a README."""

from __future__ import annotations

import re

import pytest

from mmq_sweeps.data.hub.layout import files_of

# As lmms-lab's copies of benchmarks lie on the Hub: a configuration is a folder, a split a name with a star.
CARD = """---
language: en
configs:
- config_name: DocVQA
  data_files:
  - split: test
    path: DocVQA/test-*
  - split: validation
    path: DocVQA/validation-*
- config_name: InfographicVQA
  data_files:
  - split: validation
    path: [InfographicVQA/validation-*]
- config_name: sheet
  data_dir: sheets
  sep: ";"
---
# DocVQA
"""
CARD_NAMES = [
    "README.md", "DocVQA/test-00000-of-00001.parquet", "DocVQA/validation-00000-of-00002.parquet",
    "DocVQA/validation-00001-of-00002.parquet", "InfographicVQA/validation-00000-of-00001.parquet", "sheets/dev.csv",
]  # fmt: skip
SPLIT_FOLDERS = ["train/a/1.png", "test/a/2.png", "test/b/3.jpg"]


@pytest.mark.parametrize(
    ("names", "name", "split", "found", "kind"),
    [
        (["test.jsonl", "train.jsonl", "pictures/train.png", ".git/test.csv"], None, "test", ["test.jsonl"], "json"),
        (["data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet"], None, "test", 2, "parquet"),
        (["en/dev.tsv", "de/dev.tsv"], "en", "dev", ["en/dev.tsv"], "csv"),
        (["my-set/part-1.arrow", "my-set/part-2.arrow"], None, "my-set", 2, "arrow"),
        (["dataset_dict.json", "test/data-00000-of-00001.arrow", "test/state.json"], None, "test", 1, "saved"),
        (["state.json", "dataset_info.json", "data-00000-of-00001.arrow"], None, "train", 1, "saved"),
        (["metadata.jsonl", "1.png", "2.png"], None, "train", 3, "imagefolder"),
        (["test/metadata.csv", "test/in/1.png", "train/metadata.csv", "train/2.png"], None, "test", 2, "imagefolder"),
        (["cat/1.png", "dog/2.png"], None, "train", 2, "imagefolder"),
        (SPLIT_FOLDERS, None, "test", SPLIT_FOLDERS[1:], "imagefolder"),
    ],
)
def test_files_are_named_after_their_split(
    names: list[str], name: str | None, split: str, found: list[str] | int, kind: str
) -> None:
    files = files_of(names, "", name, split)
    assert files.kind == kind
    assert len(files.names) == found if isinstance(found, int) else list(files.names) == found


def test_a_readme_says_which_files_are_of_a_configuration() -> None:
    assert files_of(CARD_NAMES, CARD, "DocVQA", "validation").names == tuple(CARD_NAMES[2:4])
    assert files_of(CARD_NAMES, CARD, "InfographicVQA", "validation").names == (CARD_NAMES[4],)
    sheet = files_of(CARD_NAMES, CARD, "sheet", "dev")
    assert (sheet.names, sheet.kind, sheet.options) == (("sheets/dev.csv",), "csv", {"sep": ";"})


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("**/x.csv", "x.csv"),
        ("**/x.csv", "a/b/x.csv"),
        ("a/**", "a/b/x.csv"),
        ("?.csv", "x.csv"),
        ("./a/*.csv", "a/x.csv"),
    ],
)
def test_patterns_are_those_of_the_hub(pattern: str, name: str) -> None:
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n    test: '{pattern}'\n---\n"
    assert files_of([name, "other/y.csv"], card, None, "test").names == (name,)


@pytest.mark.parametrize(
    ("names", "card", "name", "split", "message"),
    [
        (["a.jsonl", "b.jsonl"], "", None, "test", "split=test: there is no such split; the splits there: a, b"),
        (
            ["notes.txt"],
            "",
            None,
            "test",
            "split=test: no file of rows is there; put Parquet, Arrow, JSON lines, CSV or",
        ),
        ([], "", None, "test", "split=test: no file of rows is there"),
        (
            ["test.jsonl"],
            "",
            "de",
            "test",
            "name=de: there is no such folder in it; the folders there: none (name=null",
        ),
        (
            ["test.jsonl", "test.csv"],
            "",
            None,
            "test",
            "its files are of 2 kinds (test.csv, test.jsonl); keep files of one",
        ),
        (
            ["test-00000-of-00003.parquet"],
            "",
            None,
            "test",
            "test-*: 1 of its 3 files are here; get the others as well",
        ),
        (CARD_NAMES, CARD, None, "test", "name=null: choose one of its configurations: DocVQA, InfographicVQA, sheet"),
        (CARD_NAMES, CARD, "docvqa", "test", "name=docvqa: choose one of its configurations"),
        (CARD_NAMES[:2], CARD, "DocVQA", "validation", "split=validation: none of its files is here; get the data set"),
        ([], "---\nconfigs: [\n---", None, "test", "the head of its README.md is no YAML"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(
    names: list[str], card: str, name: str | None, split: str, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        files_of(names, card, name, split)
