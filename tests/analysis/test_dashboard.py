"""Views saved with the real packages in a project on a server on loopback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from analysis.__main__ import main
from mmq_sweeps.reporting.trackers import summary
from mmq_sweeps.store.store import Store
from tests.analysis.grids import stored
from tests.reporting.wandb_server import Site


@pytest.fixture
def site(wandb_site: Site, tmp_path: Path) -> Site:
    stored(tmp_path / "runs", {"none": [({}, 16.0, 1.0)], "gptq": [({"vision": 3}, 10.0, 0.9)]})
    for record in Store.reading(tmp_path / "runs").records():
        wandb_site.add("p", record.id, summary(record))
    return wandb_site


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["analysis", "dashboard", *arguments])
    main()


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_views_have_frontier_and_bit_widths_and_are_brought_up_to_date(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--source", "wandb:me/p", "--json")
    saved = json.loads(capsys.readouterr().out)
    assert list(saved) == ["m, t"]
    assert saved["m, t"].startswith(f"{site.url}/me/p?nw=")
    section = site.views[0]["spec"]["section"]
    panels = {
        panel["config"]["chartTitle"]: (panel["viewType"], panel["config"])
        for one in section["panelBankConfig"]["sections"]
        for panel in one["panels"]
    }
    assert list(panels) == [
        "CIDEr against bits per weight, by the paper",
        "CIDEr against bits per weight, exact",
        "CIDEr against bits of vision",
        "CIDEr against bits of connector",
        "CIDEr against bits of language",
        "bits of all parts, and CIDEr",
    ]
    kind, frontier = panels["CIDEr against bits per weight, by the paper"]
    assert (kind, frontier["xAxis"], frontier["yAxis"]) == ("Scatter Plot", "summary:bpw_paper", "summary:cider")
    assert frontier["showMaxYAxisLine"]
    # Every key of a panel is a key that runs have.
    keys = [config[axis] for kind, config in panels.values() if kind == "Scatter Plot" for axis in ("xAxis", "yAxis")]
    keys += [column["accessor"] for column in panels["bits of all parts, and CIDEr"][1]["columns"]]
    for run_of_site in site.projects["me", "p"].values():
        assert {key.removeprefix("summary:") for key in keys} <= run_of_site.summary.keys()
    filters = section["runSets"][0]["filters"]["filters"]
    assert [(one["key"], one["value"]) for one in filters] == [
        ({"section": "summary", "name": "model"}, "m"),
        ({"section": "summary", "name": "task"}, "t"),
    ]
    run(monkeypatch, "--source", "wandb:me/p")
    assert capsys.readouterr().out == f"m, t: {saved['m, t']}\n"
    assert len(site.views) == 1
    # A view that somebody deleted is made anew.
    site.views.clear()
    run(monkeypatch, "--source", "wandb:me/p")
    assert len(site.views) == 1
    assert (site.unknown, site.broken) == ([], [])


@pytest.mark.parametrize("sources", [["runs"], ["wandb:me/p", "wandb:me/q"]])
def test_other_sources_are_an_error(
    sources: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--source", *sources)
    assert "views are saved in one W&B project; say wandb:ENTITY/PROJECT" in capsys.readouterr().err


@pytest.mark.usefixtures("site")
def test_without_the_extra_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--source", "wandb:me/p")
    assert "pip install 'mmq-sweeps[dashboard]'" in capsys.readouterr().err
