"""Runs that the real client sends to a server: at once, and later by ``wandb sync``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import wandb

from mmq_sweeps.reporting.trackers import WandbTracker
from mmq_sweeps.store.record import Record
from tests.reporting.test_trackers import ITEMS, RECORD, samples
from tests.reporting.wandb_server import ENTITY, Site, sync

FAILED = replace(
    RECORD,
    id="ba9876543210",
    status="failed",
    metrics={},
    size={},
    error={"class": "RuntimeError", "message": "boom", "traceback": "Traceback ..."},
)


def logged(site: Site) -> dict[str, Record]:
    """Return the records that the project's runs hold."""
    return {name: Record.from_json(run.summary["record"]) for name, run in site.projects[ENTITY, "mmq-sweeps"].items()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_online_runs_hold_the_records_and_the_samples(wandb_site: Site, tmp_path: Path, said: list[str]) -> None:
    log = WandbTracker(mode="online").start("a-sweep", tmp_path / "wandb")
    log(RECORD, ITEMS, samples())
    log(FAILED, [], [])
    wandb.teardown()
    assert said == [f"W&B: {wandb_site.url}/{ENTITY}/mmq-sweeps (group a-sweep)"]
    assert (wandb_site.unknown, wandb_site.broken) == ([], [])
    assert logged(wandb_site) == {RECORD.id: RECORD, FAILED.id: FAILED}
    done, failed = wandb_site.projects[ENTITY, "mmq-sweeps"].values()
    assert (done.group, done.state, done.display_name) == ("a-sweep", "finished", "m gptq vision=3")
    assert done.config["method"] == {"value": {"group_size": "channel"}}
    assert done.summary["cider"] == 0.5
    assert (failed.state, failed.summary["error"]) == ("failed", "RuntimeError: boom")
    (table,) = [json.loads(body) for path, body in wandb_site.stored.items() if path.endswith("samples.table.json")]
    assert table["data"][0][2:] == ["a red circle", "a red disc\none red circle", 0.5]
    assert [body[:4] for path, body in wandb_site.stored.items() if path.endswith(".png")] == [b"\x89PNG"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_offline_runs_are_the_same_after_sync_and_a_second_attempt_replaces_the_first(
    wandb_site: Site, tmp_path: Path
) -> None:
    again = replace(RECORD, id=FAILED.id)
    for number, record in enumerate((RECORD, FAILED, again)):
        log = WandbTracker().start("a-sweep", tmp_path / str(number))
        log(record, ITEMS, samples() if record is RECORD else [])
    wandb.teardown()
    assert not wandb_site.log
    for number in range(3):
        sync(tmp_path / str(number), wandb_site, tmp_path)
        if number == 1:
            assert logged(wandb_site)[FAILED.id] == FAILED
    assert (wandb_site.unknown, wandb_site.broken) == ([], [])
    assert logged(wandb_site) == {RECORD.id: RECORD, FAILED.id: again}
    assert {run.state for run in wandb_site.projects[ENTITY, "mmq-sweeps"].values()} == {"finished"}
    assert [path for path in wandb_site.stored if path.endswith(".png")]
