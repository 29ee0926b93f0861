from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import wandb
from PIL import Image

from mmq_sweeps.reporting.trackers import NoTracker, WandbTracker, assigned, summary
from mmq_sweeps.store.record import Record

RECORD = Record(
    id="0123456789ab",
    status="done",
    cell={"parts": {"vision": {"bits": 3}}, "method": {"group_size": "channel"}},
    names={"model": "m", "task": "t", "method": "gptq"},
    metrics={"cider": {"value": 0.5, "interval": [0.4, 0.6], "higher_is_better": True}},
    size={
        "total": {"bpw_paper": 4.0, "bpw_exact": 4.2, "size_bytes": 100},
        "parts": {"vision": {"bpw_paper": 3.0, "bpw_exact": 3.2, "size_bytes": 50}},
    },
    seconds={"evaluate": 1.5},
)
ITEMS = [{"id": "a", "prediction": "a red circle", "scores": {"cider": 0.5}}]


def _is_png(path: Path) -> bool:
    return path.is_file() and path.read_bytes()[:4] == b"\x89PNG"


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def samples() -> list:
    return [("a", Image.new("RGB", (8, 8)), ["a red disc", "one red circle"])]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Set first, so that the variables that the tracker sets are undone as well.
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield
    wandb.teardown()


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_offline_run_holds_the_cell(tmp_path: Path, said: list[str]) -> None:
    log = WandbTracker(project="p").start("a-sweep", tmp_path / "wandb")
    log(RECORD, ITEMS, samples())
    assert not said
    # W&B's own process writes the file; ending it waits until all is written, as leaving the command does.
    wandb.teardown()
    folder = next((tmp_path / "wandb" / "wandb").glob("offline-run-*"))
    assert folder.name.endswith(RECORD.id)
    content = (folder / f"run-{RECORD.id}.wandb").read_bytes()
    for expected in (b"a-sweep", b"bpw_paper", b"bpw_exact", b"cider", b"group_size"):
        assert expected in content, expected
    table = json.loads(next((folder / "files" / "media" / "table").iterdir()).read_text())
    assert table["columns"] == ["id", "image", "prediction", "references", "cider"]
    assert table["data"][0][2:] == ["a red circle", "a red disc\none red circle", 0.5]
    staged = tmp_path / "wandb" / "artifacts" / "staging"
    assert [_size(path) for path in staged.rglob("*") if _is_png(path)] == [(8, 8)]


def test_the_summary_says_what_the_cell_loads_in() -> None:
    assert "loads_in" not in summary(RECORD)
    assert summary(replace(RECORD, loads_in=["transformers", "vllm"]))["loads_in"] == "transformers+vllm"


def test_the_summary_is_flat() -> None:
    flat = summary(RECORD)
    assert flat["cider"] == 0.5
    assert (flat["cider_low"], flat["cider_high"]) == (0.4, 0.6)
    assert flat["bpw_paper"] == 4.0
    assert flat["vision/bpw_exact"] == 3.2
    assert (flat["model"], flat["task"], flat["method"]) == ("m", "t", "gptq")
    cell = {**RECORD.cell, "model": {"parts": {"vision": {}, "language": {}}}}
    with_model = summary(replace(RECORD, cell=cell))
    assert (with_model["vision/bits"], with_model["language/bits"]) == (3, 16)
    assert flat["seconds/evaluate"] == 1.5


def test_without_wandb_there_is_a_warning_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    WandbTracker().start("s", tmp_path)(RECORD, ITEMS, samples())
    assert len(said) == 1
    assert "pip install wandb, or tracker=none" in said[0]
    NoTracker().start("s", tmp_path)(RECORD, ITEMS, samples())
    assert len(said) == 1


@pytest.mark.usefixtures("offline")
def test_a_server_that_cannot_be_reached_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("mmq_sweeps.reporting.trackers.INIT_TIMEOUT_SECONDS", 5)
    log = WandbTracker(mode="online").start("s", tmp_path / "wandb")
    log(RECORD, ITEMS, samples())
    assert "cells are kept offline from 0123456789ab on" in said[0]
    log(Record(**{**RECORD.__dict__, "id": "ba9876543210"}), ITEMS, samples())
    assert len(said) == 1
    assert list((tmp_path / "wandb" / "wandb").glob("offline-run-*0123456789ab"))
    assert list((tmp_path / "wandb" / "wandb").glob("offline-run-*ba9876543210"))


def test_a_tracker_that_breaks_in_the_middle_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def broken(**_options: object) -> None:
        raise ValueError("no such entity\nand much more")

    monkeypatch.setattr(wandb, "init", broken)
    WandbTracker().start("s", tmp_path)(RECORD, ITEMS, samples())
    assert said == [
        "warning: W&B did not take cell 0123456789ab (ValueError: no such entity); its record is in the store"
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "on"}, r"mode='on' \(tracker.mode, or WANDB_MODE\): Choose offline, online or disabled."),
        ({"samples": -1}, "samples=-1: choose 0 or more"),
    ],
)
def test_fields_that_cannot_be_are_errors(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WandbTracker(**fields)


def test_a_part_with_several_bit_widths_has_their_mean_and_a_label() -> None:
    selection = {"rules": [{"bits": 4, "units": ["0.mlp"]}, {"bits": 2, "units": ["1.mlp"]}]}
    cell = {"model": {"parts": {"vision": {}}}, "parts": {"vision": selection}}
    size = {"parameters": 40, "quantized_weights": 40, "bpw_paper": 3.5, "bpw_exact": 3.6, "size_bytes": 18}
    one = replace(RECORD, cell=cell, size={**RECORD.size, "parts": {"vision": size, "head": size}})
    told = summary(one)
    assert told["vision/bits"] == 3.5
    # Parts that the cell leaves alone and that its model does not list are none of its columns.
    assert not [name for name in told if name.startswith("head/")]
    assert assigned(one)["vision"].startswith("2 to 4 by unit (")
    assert "vision/bits" not in summary(replace(one, status="failed", size={}))
