"""W&B shows the store's records: nothing of an earlier attempt, nothing left out, and no run under another id."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb

from analysis.__main__ import main
from mmq_sweeps.reporting import trackers
from mmq_sweeps.reporting.progress import warnings_to
from mmq_sweeps.reporting.trackers import WandbTracker, summary
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.reporting.test_trackers import ITEMS, RECORD
from tests.reporting.wandb_server import ENTITY, Site

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
FAILED = replace(
    RECORD,
    status="failed",
    metrics={},
    size={},
    error={"class": "RuntimeError", "message": "boom", "traceback": "Traceback ..."},
)
OTHER = replace(RECORD, id="ba9876543210")


def log(tmp_path: Path, *records: Record, **fields: Any) -> list[str]:
    """Log ``records`` as one sweep, and return the warnings."""
    said: list[str] = []
    with warnings_to(said.append):
        to = WandbTracker(**{"mode": "online", **fields}).start("a-sweep", tmp_path / "runs" / "wandb")
        for record in records:
            to(record, ITEMS, [])
    wandb.teardown()
    return said


def runs(site: Site, project: str = "mmq-sweeps") -> dict[str, Any]:
    return site.projects.get((ENTITY, project), {})


def test_a_cell_that_is_measured_again_shows_nothing_of_the_failed_attempt(wandb_site: Site, tmp_path: Path) -> None:
    log(tmp_path, FAILED)
    assert runs(wandb_site)[RECORD.id].summary["error"] == "RuntimeError: boom"
    log(tmp_path, RECORD)
    (run,) = runs(wandb_site).values()
    assert (run.summary["status"], run.state) == ("done", "finished")
    expected = summary(RECORD).keys()
    assert {key for key in run.summary if not key.startswith("_")} == expected
    log(tmp_path, FAILED)
    shown = runs(wandb_site)[RECORD.id].summary
    assert shown["error"] == "RuntimeError: boom"
    assert "cider" not in shown
    assert (wandb_site.unknown, wandb_site.broken) == ([], [])


def test_a_cell_of_the_same_attempt_is_one_run_under_its_own_id(
    wandb_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "r1", "WANDB_RUN_GROUP": "g1", "WANDB_NAME": "n1", "WANDB_RESUME": "must",
        "WANDB_LAUNCH": "true", "WANDB_PROJECT": "elsewhere", "WANDB_ENTITY": "nobody", "WANDB_MODE": "disabled",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    said = log(tmp_path, RECORD, OTHER, entity=ENTITY)
    assert [line for line in said if line.startswith("warning")] == [
        "warning: WANDB_SWEEP_ID and WANDB_RUN_ID are not used: a cell's run has the cell's id, its group is the sweep"
    ]
    found = runs(wandb_site)
    assert set(found) == {RECORD.id, OTHER.id}
    assert {run.group for run in found.values()} == {"a-sweep"}
    assert {run.display_name for run in found.values()} == {"m gptq vision=3"}
    assert set(wandb_site.projects) == {(ENTITY, "mmq-sweeps")}


@pytest.mark.parametrize("missing", ["server", "key"])
@pytest.mark.usefixtures("wandb_site")
def test_without_a_server_or_a_key_every_cell_is_kept_offline_and_said_once(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "server":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        monkeypatch.setattr(trackers, "INIT_TIMEOUT_SECONDS", 5)
    else:
        monkeypatch.delenv("WANDB_API_KEY")
    said = log(tmp_path, RECORD, OTHER)
    assert len(said) == 1, said
    assert f"cells are kept offline from {RECORD.id} on" in said[0]
    assert said[0].endswith(f"python -m analysis wandb-push --source {tmp_path}/runs")
    kept = sorted(path.name[-12:] for path in (tmp_path / "runs" / "wandb" / "wandb").glob("offline-run-*"))
    assert kept == sorted([RECORD.id, OTHER.id])


def test_what_is_said_of_a_number_is_shown_beside_it(wandb_site: Site, tmp_path: Path) -> None:
    metric = {**RECORD.metrics["cider"], "warnings": ["one image only", "all captions are the same"]}
    log(tmp_path, replace(RECORD, metrics={"cider": metric}), OTHER)
    shown = {name: run.summary for name, run in runs(wandb_site).items()}
    assert shown[RECORD.id]["cider/warnings"] == "one image only; all captions are the same"
    assert {name: one["warnings"] for name, one in shown.items()} == {RECORD.id: 2, OTHER.id: 0}
    assert "cider/warnings" not in shown[OTHER.id]


def test_disabled_is_disabled(wandb_site: Site, tmp_path: Path) -> None:
    assert log(tmp_path, RECORD, mode="disabled") == []
    assert not wandb_site.log
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("former", "kept"), [("dryrun", "offline-run-*"), ("run", "run-*")])
@pytest.mark.usefixtures("wandb_site")
def test_former_names_of_modes_are_understood(former: str, kept: str, tmp_path: Path) -> None:
    log(tmp_path, RECORD, mode=former, dir=str(tmp_path / "files"))
    assert list((tmp_path / "files" / "wandb").glob(kept))
    assert not list((tmp_path / "runs" / "wandb").glob("wandb"))


def test_the_command_line_wins_over_the_environment_and_that_over_the_yaml(
    composed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fields(*overrides: str) -> tuple[Any, ...]:
        tracker = composed("tracker=wandb", *overrides).tracker
        return tracker.project, tracker.entity, tracker.mode, tracker.dir

    for name in ("PROJECT", "ENTITY", "MODE", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    assert fields() == ("mmq-sweeps", None, "offline", None)
    for name, value in (("PROJECT", "p"), ("ENTITY", "e"), ("MODE", "disabled"), ("DIR", "/tmp/d")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert fields() == ("p", "e", "disabled", "/tmp/d")
    given = ("tracker.project=q", "tracker.entity=null", "tracker.mode=online", "tracker.dir=x")
    assert fields(*given) == ("q", None, "online", "x")


def test_the_page_of_the_project_is_said_and_kept(wandb_site: Site, tmp_path: Path) -> None:
    said = log(tmp_path, RECORD, OTHER)
    page = f"{wandb_site.url}/{ENTITY}/mmq-sweeps"
    assert said == [f"W&B: {page} (group a-sweep)"]
    folder = tmp_path / "runs" / "wandb"
    assert trackers.address(folder, {"project": "mmq-sweeps"}) == page
    assert trackers.address(folder, {"project": "another"}) is None
    assert trackers.address(tmp_path, {}) is None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Make a store with two finished cells and a failed cell, and the sweeps that they belong to."""
    found = Store.open(tmp_path / "runs")
    for record in (RECORD, OTHER):
        found.save(replace(record, created="2026-01-02"), ITEMS)
    found.save(replace(FAILED, id="cccccccccccc", created="2026-01-04"))
    tracker = {"_target_": "mmq_sweeps.reporting.trackers.WandbTracker", "project": "mine", "entity": None}
    for sweep, created, cells in (
        ("first", "2026-01-01", [RECORD.id, OTHER.id]),
        ("again", "2026-01-03", [RECORD.id, OTHER.id, "cccccccccccc"]),
    ):
        content = {"created": created, "cells": {cell: {} for cell in cells}, "settings": {"tracker": tracker}}
        found.note(f"sweeps/{sweep}/sweep.json", content)
    return Store.reading(tmp_path / "runs")


def pushed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["analysis", "wandb-push", *arguments, "--json"])
    main()
    return json.loads(capsys.readouterr().out)


def test_what_a_project_lacks_is_sent_from_the_store_and_only_that(
    wandb_site: Site, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(store.root)
    told = pushed(monkeypatch, capsys, "--source", source)
    assert told[source] == {"url": f"{wandb_site.url}/{ENTITY}/mine", "sent": 3, "had": 0}
    found = runs(wandb_site, "mine")
    assert {name: run.summary["record"] for name, run in found.items()} == {
        record.id: record.to_json() for record in store.records()
    }
    assert {name: run.group for name, run in found.items()} == {
        RECORD.id: "first", OTHER.id: "first", "cccccccccccc": "again",
    }  # fmt: skip
    assert {run.state for run in found.values()} == {"finished", "failed"}
    tables = [json.loads(body) for path, body in wandb_site.stored.items() if path.endswith("samples.table.json")]
    assert [table["data"] for table in tables] == [[["a", None, "a red circle", "", 0.5]]] * 2

    # Only two cells are sent: a cell that W&B has from an earlier attempt, and a cell that it lacks.
    found[RECORD.id].summary = summary(FAILED)
    del found[OTHER.id]
    assert pushed(monkeypatch, capsys, "--source", source)[source]["sent"] == 2
    assert found[RECORD.id].summary["record"] == store.record(RECORD.id).to_json()
    assert "error" not in found[RECORD.id].summary
    assert pushed(monkeypatch, capsys, "--source", source)[source] == told[source] | {"sent": 0, "had": 3}
    # Elsewhere there is none of it.
    assert pushed(monkeypatch, capsys, "--source", source, "--to", f"{ENTITY}/other")[source]["sent"] == 3
    assert set(runs(wandb_site, "other")) == set(found)
    assert (wandb_site.unknown, wandb_site.broken) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "absent"], "--source absent: is no store"),
        (["--source", "wandb:me/p"], "what is sent to W&B is a store"),
        (["--to", "a/b/c"], "--to a/b/c: say PROJECT or ENTITY/PROJECT"),
        (["--samples", "-1"], "--samples -1: choose 0 or more"),
        (["--to", "theirs/mine"], "theirs/mine: W&B does not take 0123456789ab"),
    ],
)
def test_what_cannot_be_sent_is_an_error(
    arguments: list[str],
    message: str,
    wandb_site: Site,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(store.root.parent)
    wandb_site.forbidden.add("theirs")
    monkeypatch.setattr(sys, "argv", ["analysis", "wandb-push", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err


def test_what_was_kept_offline_for_want_of_a_key_is_sent_later(
    wandb_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Store.open(tmp_path / "runs").save(RECORD, ITEMS)
    with monkeypatch.context() as without:
        without.delenv("WANDB_API_KEY")
        (said,) = log(tmp_path, RECORD)
    assert not runs(wandb_site)
    wandb.teardown()
    asked = shlex.split(said.partition("python -m analysis wandb-push ")[2])
    (told,) = pushed(monkeypatch, capsys, *asked).values()
    assert told["sent"] == 1
    assert runs(wandb_site)[RECORD.id].summary["cider"] == 0.5


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"created": "2026", "cells": []}', "has no 'settings'"),
        ("[]", "cannot be read (list indices must be integers or slices, not str)"),
        ('{"created": ', "cannot be read (Expecting value"),
    ],
)
def test_a_sweep_that_cannot_be_read_is_told_and_the_cells_are_sent_if_the_project_is_named(
    wandb_site: Site,
    store: Store,
    content: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = store.root / "sweeps" / "broken" / "sweep.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    arguments = ["--source", str(store.root)]
    with pytest.raises(SystemExit, match="2"):
        pushed(monkeypatch, capsys, *arguments)
    told = capsys.readouterr().err
    assert told.startswith(f"error: {path} {why}")
    assert "name the project with --to" in told
    assert not runs(wandb_site, "mine")
    monkeypatch.setattr(sys, "argv", ["analysis", "wandb-push", *arguments, "--to", f"{ENTITY}/mine", "--json"])
    main()
    printed = capsys.readouterr()
    assert json.loads(printed.out)[str(store.root)]["sent"] == 3
    assert printed.err.startswith(f"note: {path} {why}")
    assert runs(wandb_site, "mine")[RECORD.id].group == "first"
