"""Every verb on input that says little prints the next step, or a result that names the limits of the data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from analysis.__main__ import main, parser
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.analysis.grids import record, stored

FULL = {"none": [({}, 16.0, 1.0)]}
TWO = [({"vision": 3}, 10.0, 0.9), ({"language": 3}, 9.0, 0.8), ({"vision": 3, "language": 3}, 5.0, 0.5)]
STORES = {
    "one cell": FULL,
    "one method": {**FULL, "gptq": TWO},
    "constant metric": {**FULL, "gptq": [(bits, bpw, 1.0) for bits, bpw, _ in TWO]},
    "missing baseline": {"gptq": TWO},
}
VERBS = {
    "frontier": ["frontier"],
    "importance": ["importance"],
    "sensitivity": ["sensitivity"],
    "recommend": ["recommend", "--max-bpw", "6"],
    "quality": ["recommend", "--min-quality", "0.8"],
    "figures": ["figures", "--only", "tradeoff", "--out", "figures"],
    "audit": ["audit"],
    "report": ["report", "--out", "report.html"],
}
# The message of each verb, and whether it is an error.
TOLD = {
    "one cell": {
        "frontier": (False, "one cell only: it is the frontier by itself"),
        "importance": (True, "m, t: has no quantized cell; run a sweep over bits"),
        "sensitivity": (False, "no quantized cell: there is no damage to tell; run a sweep over bits"),
        "recommend": (True, "no cell has at most 6 bits per weight; the smallest has 16.000"),
        "quality": (False, "best measured: full precision"),
        "figures": (True, "no cell can be shown: tradeoff needs quantized cells: python -m mmq_sweeps -m method=gptq"),
        "audit": (False, "nothing found"),
        "report": (False, "report.html"),
    },
    "one method": {
        "frontier": (False, "4 of 4 cells are on the frontier"),
        "importance": (True, "4 cells are too few for a forest; run at least 20"),
        "sensitivity": (False, "damage of two parts together"),
        "recommend": (False, "best measured: gptq vision 3 language 3"),
        "quality": (False, "best measured: gptq language 3"),
        "figures": (False, "5 files in figures"),
        "audit": (False, "nothing found"),
        "report": (False, "report.html"),
    },
    "constant metric": {
        "frontier": (False, "every cell has the same CIDEr: the one with the fewest bits is the frontier"),
        "importance": (True, "4 cells are too few for a forest"),
        "sensitivity": (False, "0.0000"),
        "recommend": (False, "best measured: gptq vision 3 language 3"),
        "quality": (False, "best measured: gptq vision 3 language 3"),
        "figures": (False, "5 files in figures"),
        "audit": (False, "3 cells lower bits and have exactly the CIDEr of full precision"),
        "report": (False, "report.html"),
    },
    "missing baseline": {
        "frontier": (False, "no full-precision cell: what is kept of full precision is not known; run method=none"),
        "importance": (True, "3 cells are too few"),
        "sensitivity": (True, "m, t: has no full-precision cell; run method=none"),
        "recommend": (False, "best measured: gptq vision 3 language 3"),
        "quality": (True, "has no full-precision cell, so its share cannot be told; run method=none"),
        "figures": (False, "5 files in figures"),
        "audit": (False, "no cell at full precision: whether quantization changed anything cannot be told"),
        "report": (False, "report.html"),
    },
}  # fmt: skip


def run(arguments: list[str], patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[bool, str]:
    """Run a command; return whether it ended in an error, and all that it said."""
    patch.setattr(sys, "argv", ["analysis", *arguments])
    code: object = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    failed = code == 2
    assert failed or code == 0
    told = capsys.readouterr()
    assert not failed or told.err.splitlines()[-1].startswith("error: ")
    return failed, told.out + told.err


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("case", STORES)
def test_little_is_told_of_little(
    case: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stored(tmp_path / "runs", STORES[case])
    error, sentence = TOLD[case][verb]
    failed, told = run([*VERBS[verb], "--source", "runs"], monkeypatch, capsys)
    assert failed is error
    assert sentence in told


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere", "--source nowhere: is no store (it has no folder 'cells'); run a sweep first"),
        ("empty", "--source empty: the store holds no finished cell yet; run a sweep with store.dir=empty"),
        ("published:nowhere", "is no folder; clone https://github.com/gautomdas/mmq and name its folder"),
        ("published:pointers", "is a Git LFS pointer; run 'git lfs pull' in the clone"),
        ("published:half", "row 2 lacks llm_bits, cider, meteor; the file is cut off: fetch it again"),
        ("published:other", "A clone that was cut off may lack them: run 'git status' and 'git lfs pull' there"),
    ],
)
def test_what_holds_nothing_is_one_sentence(
    source: str, sentence: str, verb: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Store.open(tmp_path / "empty")
    texts = {
        "pointers": "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
        "half": "vit_bits,qformer_bits,llm_bits,cider,meteor\n3,4,8,1.1,0.2\n3,4,",
        "other": "a,b\n1,2\n",
    }
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "gptq_scores.csv").write_text(text)
    failed, told = run([*VERBS[verb], "--source", source], monkeypatch, capsys)
    assert failed
    assert sentence in told


@pytest.mark.parametrize("verb", VERBS)
def test_a_store_of_failures_is_one_sentence(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lost = record("gptq", {"vision": 3}, 9.0, 0.0)
    error = {"class": "RuntimeError", "message": "boom", "traceback": ""}
    Store.open("runs").save(Record(**{**lost.__dict__, "status": "failed", "error": error, "metrics": {}}))
    failed, told = run([*VERBS[verb], "--source", "runs"], monkeypatch, capsys)
    assert failed
    assert "note: 1 of 1 cell in runs failed" in told
    assert "look at what failed: python -m analysis table --source runs" in told


def test_a_source_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cells").write_text("")
    failed, told = run(["frontier", "--source", "runs"], monkeypatch, capsys)
    assert failed
    assert "is no store" in told


def numbers() -> list[tuple[str, str, list[str]]]:
    """Return each numeric option of each verb, as verb, option, and the other arguments that the verb requires."""
    (verbs,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    needed = {"compare": ["a", "b"]}
    found = [
        (verb, action.option_strings[0], needed.get(verb, []))
        for verb, command in verbs.choices.items()
        for action in command._actions
        if action.type in (int, float)
    ]
    assert len(found) >= 6
    return found


@pytest.mark.parametrize(("verb", "option", "needed"), numbers())
def test_an_option_out_of_range_is_told_with_its_range(
    verb: str, option: str, needed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed, told = run([verb, *needed, option, "-1"], monkeypatch, capsys)
    assert failed
    assert told.startswith(f"error: {option} -1: choose ")


@pytest.mark.parametrize("share", ["0", "2", "nan", "inf"])
def test_a_share_is_above_nothing_and_at_most_everything(
    share: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["frontier", "--keep", share], ["recommend", "--min-quality", share]):
        failed, told = run(arguments, monkeypatch, capsys)
        assert failed
        assert told == f"error: {arguments[1]} {share}: choose a share above 0, at most 1\n"
