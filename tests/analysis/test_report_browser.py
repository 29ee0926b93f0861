from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mmq_sweeps
from analysis.load import load
from analysis.measures import family
from analysis.measures.importance import importances
from analysis.report import content, page
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.analysis.browser import FAINT_TEXTS, asked, chromium, show
from tests.analysis.grids import PARTS, record, saved, stored

SCENES = {"_target_": "mmq_sweeps.data.scenes.Scenes", "seed": 0}
TASK = {"data": SCENES, "split": "evaluation", "limit": 12}
MANY = 2000


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two methods at four widths of every part, with answers to scenes, a failed cell and a link to a run."""
    folder = tmp_path_factory.mktemp("report")
    store = Store.open(folder / "runs")
    items = [f"evaluation-0-{number:06d}" for number in range(12)]
    for method, loss in (("gptq", 0.01), ("rtn", 0.03)):
        for widths in itertools.product((3, 8, 16), repeat=3):
            bits = {part: width for part, width in zip(PARTS, widths, strict=True) if width < 16}
            bpw = 16 - sum(16 - width for width in bits.values()) / 4
            score = 1 - loss * sum((9 - width) ** 2 / 10 for width in bits.values()) * (1 + len(bits) / 10)
            if bits or method == "gptq":
                made = record(method, bits, bpw, score)
                cell = {**made.cell, "task": TASK}
                answers = [
                    {
                        "id": item,
                        "prediction": f"<b>{item}</b> {score:.2f}",
                        "scores": {"cider": score + 0.1 * (i % 3 - 1)},
                    }
                    for i, item in enumerate(items)
                ]
                store.save(Record(**{**made.__dict__, "id": f"{method}-{made.id}", "cell": cell}), answers)
    lost = record("rtn", {"vision": 2}, 9.0, 0.0)
    error = {"class": "OutOfMemory", "message": "boom", "traceback": ""}
    store.save(
        Record(
            **{**lost.__dict__, "cell": {**lost.cell, "task": TASK}, "status": "failed", "error": error, "metrics": {}}
        )
    )
    store.note("sweeps/a/sweep.json", {"command": "python -m mmq_sweeps -m bits=3", "cells": ["gone"], "plan": []})
    cells = load([str(folder / "runs")])
    cells.frame["url"] = "https://wandb.ai/me/project/runs/" + cells.frame["id"]
    path = folder / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "importances", partial(importances, resamples=3))
        path.write_text(page.render(content.page(cells, None, "python -m analysis report")))
    return path


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


def test_the_page_opens_without_an_error_and_without_network(report: Path, driver: Any) -> None:
    show(driver, report)
    assert driver.get_log("browser") == []
    assert asked(driver) == [report.as_uri()]
    headings = [one.text for one in driver.find_elements("css selector", "h2, h3")]
    assert headings == [
        "Summary", "m, t", "Frontier", "Importance", "Sensitivity", "Samples", "All cells", "Defects and missing cells",
        "How this was made",
    ]  # fmt: skip


def test_scenes_are_drawn_with_what_cells_said_of_them(report: Path, driver: Any) -> None:
    show(driver, report)
    images = driver.find_elements("css selector", ".samples img")
    assert len(images) == 8
    assert all(driver.execute_script("return arguments[0].naturalWidth", image) == 48 for image in images)
    first = driver.find_element("css selector", ".samples article").text
    assert "Right: a big bright rose triangle with two dots (and 4 more)" in first
    # Text that looks like markup is text.
    assert "<b>evaluation-0-000000</b> 1.00" in first


def test_defects_failures_and_cells_that_are_missing_are_told(report: Path) -> None:
    text = report.read_text()
    assert "failed with OutOfMemory: rtn-vision2." in text
    assert "1 of 1 cells have no record yet: run python -m mmq_sweeps -m bits=3 again." in text
    assert "This page: python -m analysis report" in text
    assert f"mmq-sweeps {mmq_sweeps.__version__}, Python " in text


def cells_table(driver: Any) -> Any:
    return driver.find_element("css selector", "[aria-label='All cells'].table")


def column(driver: Any, label: str) -> list[str]:
    return driver.execute_script(
        """const table = arguments[0].querySelector("table");
        const index = [...table.querySelectorAll("th")].findIndex((th) => th.textContent === arguments[1]);
        return [...table.querySelectorAll("tbody tr")].map((row) => row.cells[index].textContent);""",
        cells_table(driver), label,
    )  # fmt: skip


def test_the_table_sorts_both_ways_with_missing_values_last(report: Path, driver: Any) -> None:
    show(driver, report)
    header = cells_table(driver).find_element("xpath", ".//th[button[text()='CIDEr']]")
    for order, up in (("ascending", True), ("descending", False)):
        header.find_element("tag name", "button").click()
        assert header.get_attribute("aria-sort") == order
        shown = column(driver, "CIDEr")
        assert shown[-1] == ""
        figures = [float(text) for text in shown[:-1]]
        assert len(figures) == 53
        assert figures == sorted(figures, reverse=not up)


def test_the_table_filters_by_words_and_by_choice(report: Path, driver: Any) -> None:
    show(driver, report)
    host = cells_table(driver)
    host.find_element("tag name", "input").send_keys('"vision 3" LANGUAGE')
    assert host.find_element("css selector", "[role=status]").text == "12 of 54"
    assert all("vision 3" in cell and "language" in cell for cell in column(driver, "cell"))
    chosen = host.find_element("css selector", "select[aria-label=method]")
    chosen.find_element("xpath", "option[@value='rtn']").click()
    assert host.find_element("css selector", "[role=status]").text == "6 of 54"
    assert set(column(driver, "method")) == {"rtn"}
    link = host.find_element("css selector", "tbody a")
    assert link.get_attribute("href").startswith("https://wandb.ai/me/project/runs/rtn-rtn-vision3")


def test_pointing_at_a_point_names_its_cell(report: Path, driver: Any) -> None:
    from selenium.webdriver import ActionChains

    show(driver, report)
    points = driver.find_element("css selector", "figure").find_elements("css selector", ".point")
    tip = driver.find_element("id", "tip")
    assert not tip.is_displayed()
    # The frontiers' own points are drawn last; the last of them is full precision.
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", points[-2])
    ActionChains(driver).move_to_element(points[-2]).perform()
    assert tip.is_displayed()
    name, figures = tip.text.split("\n")[:2]
    assert name.startswith("rtn ")
    assert figures.startswith("bits per weight 1")
    row = next(row for row in content_rows(driver) if row["cell"] == name)
    assert f"CIDEr {row['CIDEr']}" in figures
    ActionChains(driver).move_to_element(driver.find_element("tag name", "h1")).perform()
    assert not tip.is_displayed()


def content_rows(driver: Any) -> list[dict[str, str]]:
    return [
        {"cell": cell, "CIDEr": figure}
        for cell, figure in zip(column(driver, "cell"), column(driver, "CIDEr"), strict=True)
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_legible(report: Path, driver: Any, width: int, scheme: str) -> None:
    show(driver, report, width, scheme)
    assert driver.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches") is (scheme == "dark")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    texts, faint = driver.execute_script(FAINT_TEXTS)
    assert texts > 500
    assert faint == []
    # Nothing is drawn beyond a chart's edge, and charts are drawn at the size that they are shown at.
    sizes = driver.execute_script(
        """return [...document.querySelectorAll(".panel svg")].map((svg) =>
        [svg.viewBox.baseVal.width, svg.getBoundingClientRect().width, svg.getBoundingClientRect().right])"""
    )
    assert sizes
    assert all(abs(drawn - seen) < 2 and right <= width for drawn, seen, right in sizes)


def test_a_window_that_becomes_narrow_draws_its_charts_anew(report: Path, driver: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    show(driver, report, 1280)
    screen = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    wide = "return Math.max(...[...document.querySelectorAll('.panel svg')].map((svg) => svg.viewBox.baseVal.width))"
    WebDriverWait(driver, 20).until(lambda browser: browser.execute_script(wide) <= 390)
    assert driver.get_log("browser") == []


def refused(*_arguments: Any) -> None:
    raise ValueError("not asked for")


def test_a_report_of_2000_cells_is_small_and_shows_all_of_them(
    tmp_path: Path, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = list(itertools.islice(itertools.product(range(2, 15), repeat=3), MANY - 1))
    rows = [
        (
            dict(zip(PARTS, bits, strict=True)),
            16 - sum(16 - width for width in bits) / 4,
            1 - sum(1 / width for width in bits) / 9,
        )
        for bits in widths
    ]
    stored(tmp_path / "runs", {"none": [({}, 16.0, 1.0)], "gptq": rows}, items=1)
    cells = load([str(tmp_path / "runs")])
    # Its importance takes a minute and is three rows of the page.
    monkeypatch.setattr(family, "importances", refused)
    path = tmp_path / "report.html"
    path.write_text(page.render(content.page(cells, None, "python -m analysis report")))
    assert path.stat().st_size < 8e6
    show(driver, path)
    assert driver.get_log("browser") == []
    assert driver.find_element("css selector", "[aria-label='All cells'].table [role=status]").text == "2,000 of 2,000"
    assert len(column(driver, "cell")) == 100
    driver.find_element("xpath", "//button[text()='Show all 2,000']").click()
    assert len(column(driver, "cell")) == MANY


def test_a_record_without_scores_is_no_obstacle(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    saved(store, record("none", {}, 16.0, 1.0))
    saved(store, record("gptq", {"vision": 3}, 12.0, 0.5))
    text = page.render(content.page(load([str(tmp_path)]), None, "c"))
    assert "No cell of this source has its predictions here: no samples" in text


def test_a_warning_is_marked_beside_its_figure_and_low_is_bright_where_less_is_better(
    tmp_path: Path, driver: Any
) -> None:
    store = Store.open(tmp_path / "runs")
    for widths in itertools.product((3, 16), repeat=3):
        bits = {part: width for part, width in zip(PARTS, widths, strict=True) if width < 16}
        made = record("gptq", bits, 16.0 - len(bits), 0.1 + len(bits) / 10)
        said = {"warnings": ["68 of 100 answers are identical"]} if len(bits) == 3 else {}
        metrics = {"wer": {**made.metrics["cider"], "higher_is_better": False, **said}}
        saved(store, Record(**{**made.__dict__, "metrics": metrics}))
    path = tmp_path / "report.html"
    path.write_text(page.render(content.page(load([str(tmp_path / "runs")]), None, "c")))
    show(driver, path)
    assert driver.get_log("browser") == []
    (mark,) = cells_table(driver).find_elements("css selector", ".mark")
    assert (mark.text, mark.get_attribute("title")) == ("!", "68 of 100 answers are identical")
    assert mark.find_element("xpath", "..").text == "0.4000!"
    figure = driver.find_element("xpath", "//figure[figcaption[text()='Part by part at equal bits']]")
    colours = {one.get_attribute("fill") for one in figure.find_elements("css selector", "rect.point")}
    # Alone the parts score 0.2, two together 0.3: the former are the bright ones.
    alone = figure.find_element("css selector", "rect.point").get_attribute("fill")
    assert (alone, colours) == ("#fee838", {"#fee838", "#00224e"})
