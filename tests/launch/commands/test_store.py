from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch.__main__ import main
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.launch.cells import cell, record

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return ``launch("store", "list")``, which returns exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["launch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, errors = capsys.readouterr()
        return int(ended.value.code or 0), out, errors

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a store with a space and letters beyond ASCII in its path, two records and artifacts of every kind."""
    root = tmp_path / "meine Läufe 量"
    store = Store.open(root)
    for one in (cell(16, 16, 16), cell(3, 16, 16)):
        store.save(record(one), [{"id": "a", "prediction": "x", "scores": {}}])
    for kind, key, days in (("quantized", "q", 20), ("statistics", "s", 10), ("outputs", "o", 0)):
        store.artifacts.save(kind, key, {"w": torch.zeros(1000, dtype=torch.uint8)}, {})
        for path in (root / "artifacts" / kind).iterdir():
            os.utime(path, (time.time() - days * 86400,) * 2)
    return root


def there(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "artifacts").rglob("*.json"))


def test_what_lies_in_a_store_is_listed_by_kind(root: Path, launch: Run) -> None:
    store = Store.open(root, label="worker 1")
    with store.locks.lock("cells", "c"):
        status, out, _ = launch("store", "--store", root, "--json")
        _, shown, _ = launch("store", "list", "--store", root)
    told = json.loads(out)
    assert status == 0
    assert told["store"] == str(root)
    kinds = {kind["kind"]: kind for kind in told["kinds"]}
    assert {kind: kinds[kind]["count"] for kind in ("cells", "quantized", "statistics", "outputs", "corrupt")} == {
        "cells": 2, "quantized": 1, "statistics": 1, "outputs": 1, "corrupt": 0,
    }  # fmt: skip
    assert kinds["quantized"]["size_bytes"] > 1000
    assert kinds["quantized"]["used"] < kinds["outputs"]["used"]
    assert told["locks"]["cells/c"]["label"] == "worker 1"
    assert "statistics" in shown
    assert "locked: cells/c by worker 1 on" in shown
    assert str(root) in shown


def test_a_check_finds_what_is_not_what_was_written_and_changes_nothing(root: Path, launch: Run) -> None:
    assert launch("store", "check", "--store", root)[:2] == (
        0, "2 records and 3 artifacts are what was written, 0 are not\n",
    )  # fmt: skip
    one = cell(3, 16, 16).id
    (root / "cells" / one / "items.json").write_text("[]")
    path = root / "artifacts" / "statistics" / "s.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    (root / "artifacts" / "outputs" / "o.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    status, out, _ = launch("store", "check", "--store", root, "--json")
    told = json.loads(out)
    assert status == 1
    assert (told["records"], told["artifacts"]) == (1, 1)
    assert len(told["problems"]) == 2
    assert one in told["problems"][0]
    assert "s.safetensors does not match" in told["problems"][1]
    assert "1 artifact was not written completely" in told["warnings"][0]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--older-than", "15"], ["o", "s"]),
        (["--older-than", "5"], ["o"]),
        (["--kind", "outputs"], ["q", "s"]),
        (["--kind", "outputs", "--kind", "quantized"], ["s"]),
        (["--max-gb", "2.5e-6"], ["q", "s"]),
        (["--max-gb", "0"], []),
        (["--max-gb", "1"], ["o", "q", "s"]),
        (["--kind", "quantized", "--older-than", "30"], ["o", "q", "s"]),
    ],
)
def test_pruning_removes_what_is_said(root: Path, launch: Run, options: list[str], left: list[str]) -> None:
    _, foretold, _ = launch("store", "prune", "--store", root, "--json", "--dry-run", *options)
    assert there(root) == ["o", "q", "s"]
    status, out, _ = launch("store", "prune", "--store", root, "--json", *options)
    assert status == 0
    assert there(root) == left
    assert json.loads(out)["removed"] == json.loads(foretold)["removed"]
    assert len(Store.open(root).records()) == 2


def test_pruning_leaves_what_a_running_job_needs(root: Path, launch: Run) -> None:
    with Store.open(root).locks.pinned([("statistics", "s")]):
        _, out, _ = launch("store", "prune", "--store", root, "--max-gb", "0")
    assert there(root) == ["s"]
    assert out.startswith("removed 2 artifacts of 0.0 MB; 0.0 MB are left")


def test_pruning_says_when_another_evicts(root: Path, launch: Run) -> None:
    with Store.open(root).locks.lock("evict", "artifacts"):
        status, _, errors = launch("store", "prune", "--store", root, "--max-gb", "0")
    assert status == 1
    assert "another process evicts" in errors
    assert there(root) == ["o", "q", "s"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["list", "--max-gb", "1"], "--max-gb: is for prune, not for list"),
        (["check", "--dry-run"], "--dry-run: is for prune, check changes nothing"),
        (["prune"], "prune: say what with --max-gb GB, --older-than DAYS or --kind KIND"),
        (["prune", "--max-gb", "-1"], "--max-gb -1: choose 0 or more"),
        (["prune", "--max-gb", "nan"], "--max-gb nan: choose 0 or more"),
        (["prune", "--older-than", "-2"], "--older-than -2: choose 0 or more"),
    ],
)
def test_options_that_do_not_fit_are_named(root: Path, launch: Run, arguments: list[str], told: str) -> None:
    status, _, errors = launch("store", *arguments, "--store", root)
    assert (status, errors) == (2, f"error: {told}\n")


@pytest.mark.parametrize("action", ["list", "check", "prune"])
def test_what_is_no_store_stays_none(tmp_path: Path, launch: Run, action: str) -> None:
    options = ["--max-gb", "1"] if action == "prune" else []
    status, _, errors = launch("store", action, "--store", tmp_path / "none", *options)
    assert status == 2
    assert "is no store" in errors
    assert not (tmp_path / "none").exists()


def named(name: str, checkpoint: str, revision: str | None, **more: str) -> Record:
    one = cell(16, 16, 16)
    model = {**one.model, "checkpoint": checkpoint, "revision": revision, **more}
    other = replace(one, model=model, names={**one.names, "model": name})
    return record(other)


def test_two_checkpoints_under_one_name_are_told(tmp_path: Path, launch: Run) -> None:
    store = Store.open(tmp_path)

    def told(one: Record) -> list[str]:
        return store.namesakes([(one.names["model"], one.cell["model"])])

    store.save(named("mine", "hub/a", "v1"))
    store.save(named("mine", "hub/a", "v1", dtype="float16"))
    store.save(named("other", "./x", "sha256:1"))
    assert told(named("mine", "hub/a", "v1")) == []
    assert told(named("other", "./moved", "sha256:1")) == [], "the same weights in another folder"
    (warning,) = told(named("mine", "hub/a", "v2"))
    assert "model.name=mine names 2 different checkpoints: hub/a (v1), hub/a (v2)" in warning
    assert told(named("mine", "hub/a", "v1")) == [], "v2 was asked for, and never measured"
    store.save(named("mine", "hub/a", "v2"))
    assert told(named("mine", "hub/a", "v1")) == [warning]
    _, out, _ = launch("store", "check", "--store", tmp_path)
    assert f"warning: {warning}" in out
