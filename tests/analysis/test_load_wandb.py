"""Load cells from a W&B project with the real client and a server on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import wandb

from analysis.__main__ import main
from analysis.load import load, wandb_client
from mmq_sweeps.reporting.trackers import WandbTracker, summary
from mmq_sweeps.store.store import Store
from tests.analysis.grids import stored
from tests.conftest import SMALL
from tests.reporting.wandb_server import KEY, Site, sync

CELLS = {
    "none": [({}, 16.0, 1.0)],
    "gptq": [({"vision": bits}, 8.0 + bits, 0.5 + bits / 20) for bits in range(2, 9)],
    "rtn": [({"language": bits}, 6.0 + bits, 0.4 + bits / 20) for bits in range(2, 9)],
}
ADDRESS = ["where", "url"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    stored(tmp_path / "runs", CELLS)
    return Store.reading(tmp_path / "runs")


@pytest.fixture
def site(wandb_site: Site, store: Store, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Serve the project me/p with every cell of ``store``, in groups by method; pages are small."""
    monkeypatch.setattr(wandb_client, "LISTED", 6)
    monkeypatch.setattr(wandb_client, "FETCHED", 4)
    # Logged in another order than measured.
    for record in reversed(store.records()):
        wandb_site.add("p", record.id, summary(record), group=record.names["method"])
    return wandb_site


def pages(site: Site) -> tuple[int, list[str]]:
    """Return how many pages of names were requested, and which runs were read whole; forget both."""
    asked = [json.loads(variables["filters"]) for variables in site.operations("Runs")]
    site.log.clear()
    whole = [name for filters in asked for name in filters.get("name", {}).get("$in", [])]
    return sum("name" not in filters for filters in asked), whole


def assert_same(pulled: pd.DataFrame, of_store: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(pulled.drop(columns=ADDRESS), of_store.drop(columns="where"))


def test_a_pull_gives_the_table_of_the_store_and_is_read_once(site: Site, store: Store) -> None:
    cells = load(["wandb:me/p"])
    assert_same(cells.frame, load([str(store.root)]).frame)
    assert cells.notes == ()
    assert list(cells.frame["url"]) == [f"{site.url}/me/p/runs/{cell}" for cell in cells.frame["id"]]
    names = [run.name for run in site.projects["me", "p"].values()]
    assert pages(site) == (3, names)
    again = load(["wandb:me/p"])
    pd.testing.assert_frame_equal(again.frame, cells.frame)
    assert pages(site) == (3, [])
    assert (site.unknown, site.broken) == ([], [])


def test_a_run_that_was_logged_again_is_read_again_and_a_deleted_one_is_gone(site: Site, store: Store) -> None:
    load(["wandb:me/p"])
    pages(site)
    runs = site.projects["me", "p"]
    first, second = store.records()[:2]
    changed = replace(first, metrics={"cider": {**first.metrics["cider"], "value": 0.123}})
    runs[first.id].summary, runs[first.id].heartbeat = summary(changed), site.now()
    del runs[second.id]
    frame = load(["wandb:me/p"]).frame.set_index("id")
    assert frame.loc[first.id, "metric.cider"] == 0.123
    assert second.id not in frame.index
    assert pages(site)[1] == [first.id]


def test_a_pull_that_breaks_off_goes_on_where_it_stopped(site: Site, store: Store) -> None:
    site.pages_left = 5  # three of names, two of four runs each
    with pytest.raises(
        OSError, match=r"does not answer as it should \(the server is going down\).*goes on where it stop"
    ):
        load(["wandb:me/p"])
    assert len(pages(site)[1]) == 12
    (cache,) = (store.root.parent / "cache").rglob("runs.jsonl")
    # Killed in the middle of a line.
    cache.write_bytes(cache.read_bytes()[:-50])
    site.pages_left = None
    assert_same(load(["wandb:me/p"]).frame, load([str(store.root)]).frame)
    assert len(pages(site)[1]) == 8


def test_runs_cached_by_another_version_are_read_anew(site: Site, store: Store) -> None:
    kept = load([str(store.root)]).frame
    load(["wandb:me/p"])
    pages(site)
    (cache,) = (store.root.parent / "cache").rglob("runs.jsonl")
    first = json.loads(cache.read_text().split("\n")[1])
    for line in ('{"a": 1}', "[]", '"text"', '{"listed": null}', '{"listed": {"name": "x"}, "url": ""}'):
        # As a version with a field more wrote it.
        cache.write_text(f"{json.dumps({**first, 'tags': []})}\n{line}\n")
        assert_same(load(["wandb:me/p"]).frame, kept)
        assert len(pages(site)[1]) == 15
    load(["wandb:me/p"])
    assert pages(site)[1] == []


def test_a_group_is_one_sweep(site: Site) -> None:
    assert set(load(["wandb:me/p/gptq"]).frame["method"]) == {"gptq"}
    assert len(pages(site)[1]) == 7
    # Groups share the pages read for the project.
    assert len(load(["wandb:me/p"]).frame) == 15
    assert len(pages(site)[1]) == 8


def test_what_others_logged_is_kept_or_told(site: Site, store: Store) -> None:
    runs = site.projects["me", "p"]
    first = store.records()[0].id
    runs[first].summary |= {"rating": 4.5, "_runtime": 3, "samples": {"_type": "table-file"}, "cider": 0.9}
    runs[first].config = {"node": {"value": "a12"}, "parts": {"value": {}}, "_wandb": {"value": {}}}
    site.add("p", "other", {"loss": 1.0})
    site.add("p", "going", {}).state = "running"
    broken = store.records()[1]
    site.add("p", "broken", {"record": broken.to_json().replace(broken.id, "broken")})
    cells = load(["wandb:me/p"])
    row = cells.frame.set_index("id").loc[first]
    assert (row["rating"], row["node"]) == (4.5, "a12")
    assert not {"_runtime", "samples", "cider", "record"} & set(cells.frame)
    assert len(cells.frame) == 15
    assert sorted(cells.notes) == [
        "1 of 18 runs in wandb:me/p holds a record that does not match its sha256; log these cells again with this version",
        "1 of 18 runs in wandb:me/p holds no cell: something else logged them, or they ended before their cell did",
        "1 of 18 runs in wandb:me/p is still being logged",
    ]


def test_a_store_and_its_mirror_are_one_table_with_scores_and_addresses(site: Site, store: Store) -> None:
    for sources in ([str(store.root), "wandb:me/p"], ["wandb:me/p", str(store.root)]):
        cells = load(sources)
        assert (len(cells.frame), cells.notes) == (15, ())
        assert cells.frame["url"].str.startswith(site.url).all()
        assert cells.scores(cells.frame, "cider") is not None
    mirror = load(["wandb:me/p"])
    assert mirror.scores(mirror.frame, "cider") is None


def test_the_key_may_lie_in_netrc(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    machine = site.url.removeprefix("http://")
    (tmp_path / "netrc").write_text(f"machine {machine}\n  login user\n  password {KEY}\n")
    assert len(load(["wandb:me/p"]).frame) == 15


@pytest.mark.parametrize(
    ("source", "environment", "told"),
    [
        ("wandb:p", {}, "say wandb:ENTITY/PROJECT, or wandb:ENTITY/PROJECT/GROUP"),
        ("wandb:me/q", {}, "shows no project 'q' of 'me' to your key (Could not find project q). Check both names"),
        ("wandb:you/p", {}, "shows no project 'p' of 'you' to your key (permission denied). Check both names"),
        ("wandb:me/p/sweep", {}, "no cell is there (it has no run in the group 'sweep': check its name)"),
        ("wandb:me/empty", {}, "no cell is there (it has no run). A sweep logs its cells with tracker=wandb"),
        ("wandb:me/other", {}, "no cell is there (1 of 1 run in wandb:me/other holds no cell"),
        ("wandb:me/p", {"WANDB_API_KEY": ""}, "there is no key for http://127.0.0.1"),
        ("wandb:me/p", {"WANDB_API_KEY": "f" * 40}, "does not take the key (Failed to verify credentials"),
        ("wandb:me/p", {"WANDB_API_KEY": "f"}, "does not take the key (WANDB_API_KEY invalid"),
        ("wandb:me/p", {"WANDB_BASE_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer as it should"),
    ],
)
def test_bad_input_is_a_sentence(
    site: Site, source: str, environment: dict[str, str], told: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    site.projects["me", "empty"] = {}
    site.add("other", "one", {"loss": 1.0})
    site.forbidden.add("you")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["analysis", "frontier", "--source", source])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert error.startswith(f"error: --source {source}: ")
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("site")
def test_without_a_network_the_last_pull_stands_in_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(["wandb:me/p"]).frame
    # As without a network: no connection to the server can be made.
    monkeypatch.setattr(socket, "create_connection", refuse)
    cells = load(["wandb:me/p"])
    pd.testing.assert_frame_equal(cells.frame, before)
    assert "(Network is unreachable). Check the network" in cells.notes[0]
    assert "Shown are the 15 runs of the pull of 20" in cells.notes[0]
    with pytest.raises(OSError, match="Check the network"):
        load(["wandb:me/p/rtn"])  # That group was never pulled.


def refuse(*_arguments: object) -> None:
    raise OSError("Network is unreachable")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_sweep_logged_at_once_and_a_run_synced_later_come_back_as_the_store(
    wandb_site: Site, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """The whole way: the command with an online tracker, an offline run and ``wandb sync``, the pull."""
    small = [*(one for one in SMALL if one != "tracker=none"), "component=language", "tracker.project=p"]
    done = command("-m", "method=rtn", "bits=2,3", "tracker.mode=online", *small)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    store = Store.reading(tmp_path / "runs")
    assert set(wandb_site.projects["me", "p"]) == {record.id for record in store.records()}
    last = store.records()[-1]
    del wandb_site.projects["me", "p"][last.id]
    WandbTracker(project="p").start("s", tmp_path / "offline")(last, [], [])
    wandb.teardown()
    sync(tmp_path / "offline", wandb_site, tmp_path)
    pulled, kept = load(["wandb:me/p"]), load([str(store.root)])
    assert len(pulled.frame) == 3
    assert_same(pulled.frame, kept.frame)
    assert pulled.history().versions == kept.history().versions
    assert (wandb_site.unknown, wandb_site.broken) == ([], [])
