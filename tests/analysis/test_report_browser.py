"""The report in a browser: its first view, and its answers to hover, click, keys and choices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mmq_sweeps
from analysis.cells import Cells
from analysis.cells.selections import assignment
from analysis.load import load
from analysis.measures import family
from analysis.measures.frontier import frontiers
from analysis.measures.importance import Importance
from analysis.report import content, page
from analysis.report.blocks import Column, Page, Sample, Section, Table
from analysis.report.comparison import compared
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.analysis.browser import FAINT_TEXTS, asked, chromium, show
from tests.analysis.grids import PARTS, record, saved

SCENES = {"_target_": "mmq_sweeps.data.scenes.Scenes", "seed": 0}
TASK = {"data": SCENES, "split": "evaluation", "limit": 12}
MANY = 600


def grid(store: Store) -> None:
    """Fill ``store`` with two methods at three widths of every part, scenes, a failed cell, and a sweep that lacks a cell."""
    items = [f"evaluation-0-{number:06d}" for number in range(12)]
    for method, loss in (("gptq", 0.01), ("rtn", 0.03)):
        for widths in itertools.product((3, 8, 16), repeat=3):
            bits = {part: width for part, width in zip(PARTS, widths, strict=True) if width < 16}
            bpw = 16 - sum(16 - width for width in bits.values()) / 4
            score = 1 - loss * sum((9 - width) ** 2 / 10 for width in bits.values()) * (1 + len(bits) / 10)
            if bits or method == "gptq":
                made = record(method, bits, bpw, score)
                answers = [
                    {
                        "id": item,
                        "prediction": f"<b>{item}</b> at {score:.2f}",
                        "scores": {"cider": score + 0.1 * (i % 3 - 1)},
                    }
                    for i, item in enumerate(items)
                ]
                total = {**made.size["total"], "size_bytes": int(bpw * 1e5)}
                cell = {**made.cell, "task": TASK}
                size = {**made.size, "total": total}
                store.save(
                    Record(**{**made.__dict__, "id": f"{method}-{made.id}", "cell": cell, "size": size}), answers
                )
    lost = record("rtn", {"vision": 2}, 9.0, 0.0)
    error = {"class": "OutOfMemory", "message": "boom", "traceback": ""}
    store.save(
        Record(
            **{**lost.__dict__, "cell": {**lost.cell, "task": TASK}, "status": "failed", "error": error, "metrics": {}}
        )
    )
    store.note("sweeps/a/sweep.json", {"command": "python -m mmq_sweeps -m bits=3", "cells": ["gone"], "plan": []})


def importance(method: str, *doubts: str) -> Importance:
    """Return made-up importances, since forests take seconds."""
    shares = {
        "forest": 30.0,
        "permutation": 30.0,
        "shap": 40.0,
        "mean": 33.0,
        "low": 20.0,
        "high": 50.0,
        "per_bit": 100.0,
    }
    return Importance("m, t", "cider", 27, pd.DataFrame(shares, index=list(PARTS)), 0.9, {}, doubts, method)


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    folder = tmp_path_factory.mktemp("report") / "runs"
    grid(Store.open(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent))
        found = load([str(folder)])
    found.frame["url"] = "https://wandb.ai/me/project/runs/" + found.frame["id"]
    return found


@pytest.fixture(scope="session")
def report(cells: Cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "importances", lambda *_: [importance("gptq"), importance("rtn", "the ranking changes")])
        path.write_text(page.render(content.page(cells, None, "python -m analysis report")))
    return path


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


def written(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(page.render(content.page(load([str(tmp_path / "runs")]), None, "c")))
    return path


def text(driver: Any, selector: str) -> str:
    """Return the text of the first element, as it is in the page and with plain spaces."""
    found: str = driver.execute_script("return document.querySelector(arguments[0]).textContent", selector)
    return found.replace("\u00a0", " ")


def choose(driver: Any, selector: str, value: str, event: str) -> None:
    driver.execute_script(
        """const [selector, value, event] = arguments, input = document.querySelector(selector);
        input.value = value;
        input.dispatchEvent(new Event(event, { bubbles: true }));""",
        selector, value, event,
    )  # fmt: skip


def press(driver: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_has_a_picture_and_the_answer(
    report: Path, cells: Cells, driver: Any, width: int, height: int
) -> None:
    show(driver, report, width)
    assert driver.get_log("browser") == []
    assert asked(driver) == [report.as_uri()]
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    for selector in (".answer", ".picture svg", ".marks .mark", "input.budget", ".overview .controls"):
        box = driver.execute_script(
            "const box = document.querySelector(arguments[0]).getBoundingClientRect(); return [box.top, box.bottom, box.right]",
            selector,
        )
        assert 0 <= box[0] < box[1] <= height, selector
        assert box[2] <= width, selector
    best = frontiers(cells)[0].best_within(8.0)
    assert best is not None
    named = assignment(best).replace(" connector", " / connector").replace(" language", " / language")
    assert text(driver, ".answer").startswith(f"At 8 bits per weight take {named}: CIDEr ")
    headings = [one.text for one in driver.find_elements("css selector", "h2, h3")]
    assert headings == [
        "m, t", "Importance", "Sensitivity", "Changed answers", "Samples", "All cells", "Defects and missing cells",
        "How this was made",
    ]  # fmt: skip


def test_the_selectors_move_the_mark_and_change_the_sentence(report: Path, cells: Cells, driver: Any) -> None:
    show(driver, report)
    one = frontiers(cells)[0]
    places = set()
    for budget in ("7", "9.5", "13"):
        choose(driver, ".overview input[type=number]", budget, "input")
        best = one.best_within(float(budget))
        assert best is not None
        assert text(driver, ".overview strong").replace(" /", "") == assignment(best)
        assert driver.execute_script("return document.querySelector('.overview').dataset.answer") == best["id"]
        kept = best["metric.cider"] / one.full
        assert f"{kept:.1%}".replace("%", " %") + " of full precision [" in text(driver, ".answer")
        mark = driver.find_element("css selector", ".marks .mark")
        places.add((mark.get_attribute("cx"), mark.get_attribute("cy")))
    assert len(places) == 3
    # Another size keeps the answer, and says the budget in its unit.
    choose(driver, "select[aria-label=Size]", "2", "change")
    assert text(driver, ".answer").startswith("Within 1.2 MB take ")
    assert "MB more (one bit a weight) buys" in text(driver, ".answer")
    assert driver.execute_script("return document.querySelector('.overview').dataset.answer") == best["id"]
    # Without a method the answer is another's.
    driver.find_element("xpath", "//button[contains(@class, 'chip') and text()='gptq']").click()
    assert text(driver, ".overview strong").startswith("rtn ")
    press(driver, "\ue004")


def test_hovering_names_a_cell_and_clicking_pins_it(report: Path, driver: Any) -> None:
    from selenium.webdriver import ActionChains

    show(driver, report)
    tip = driver.find_element("id", "tip")
    assert not tip.is_displayed()
    box, x, y = driver.execute_script(
        """const mark = document.querySelector(".marks .mark:not(.halo)"), svg = document.querySelector(".picture");
        const box = svg.getBoundingClientRect();
        return [[box.width, box.height], Number(mark.getAttribute("cx")), Number(mark.getAttribute("cy"))];"""
    )
    picture = driver.find_element("css selector", ".picture")
    at = (round(x - box[0] / 2), round(y - box[1] / 2))
    ActionChains(driver).move_to_element_with_offset(picture, *at).perform()
    assert tip.is_displayed()
    name, figures, size = tip.text.split("\n")[:3]
    assert name == text(driver, ".overview strong")
    assert figures.startswith("CIDEr 0.")
    assert "of full precision [" in figures
    assert size.endswith("bits per weight")
    ActionChains(driver).click().perform()
    pinned = driver.find_element("id", "cell")
    assert pinned.is_displayed()
    shown = pinned.text
    assert shown.startswith(name)
    assert "component.vision.bits=" in shown
    assert "python -m mmq_sweeps.export gptq-gptq-" in shown
    assert "<b>evaluation-0-000000</b> at" in shown
    assert "record.json" in shown
    assert len(pinned.find_elements("css selector", "ul.said img")) == 8
    press(driver, "\ue00c")
    assert not pinned.is_displayed()
    # So does a square of a heat map.
    square = driver.find_element("css selector", ".damages [class^=square] rect")
    driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", square)
    drawn(driver)
    ActionChains(driver).move_to_element(square).click().perform()
    assert text(driver, "#tip").startswith("gptq vision 3 alone\ncosts CIDEr 0.0")
    assert text(driver, "#cell h2") == "gptq vision 3"
    press(driver, "\ue00c")
    assert driver.get_log("browser") == []


def test_everything_can_be_reached_with_keys(report: Path, driver: Any) -> None:
    show(driver, report)
    tab, enter, escape, right, down = "\ue004", "\ue007", "\ue00c", "\ue014", "\ue015"
    focused = "return document.activeElement.className || document.activeElement.id"
    driver.execute_script("document.querySelector('.overview input[type=number]').focus()")
    press(driver, tab)
    assert driver.execute_script(focused) == "picture"
    press(driver, right)
    first = text(driver, "#tip")
    assert driver.find_element("id", "tip").is_displayed()
    press(driver, right)
    assert text(driver, "#tip") != first
    press(driver, down)
    assert text(driver, "#tip").startswith("rtn ")
    press(driver, enter)
    assert driver.execute_script(focused) == "cell"
    assert text(driver, "#cell h2").startswith("rtn ")
    press(driver, escape)
    assert driver.execute_script(focused) == "picture"
    press(driver, tab)
    assert driver.execute_script(focused) == "budget"
    before = text(driver, ".answer")
    press(driver, *[right] * 20)
    assert text(driver, ".answer") != before
    driver.execute_script("document.querySelector('[aria-label=\"All cells\"].table .scroll').focus()")
    press(driver, down, down, enter)
    assert text(driver, "#cell h2").replace(" /", "") == column(driver, "cell")[1]
    press(driver, escape)


def cells_table(driver: Any) -> Any:
    return driver.find_element("css selector", "[aria-label='All cells'].table")


def column(driver: Any, label: str) -> list[str]:
    return driver.execute_script(
        """const table = arguments[0].querySelector("table");
        const index = [...table.querySelectorAll("th")].findIndex((th) => th.textContent === arguments[1]);
        return [...table.querySelectorAll("tbody tr:not(.gap)")].map((row) => row.cells[index].textContent);""",
        cells_table(driver), label,
    )  # fmt: skip


def counted(driver: Any) -> str:
    return cells_table(driver).find_element("css selector", "[role=status]").text


def test_the_table_sorts_and_filters(report: Path, driver: Any) -> None:
    show(driver, report)
    header = cells_table(driver).find_element("xpath", ".//th[button[text()='CIDEr']]")
    for order, up in (("ascending", True), ("descending", False)):
        header.find_element("tag name", "button").click()
        assert header.get_attribute("aria-sort") == order
        # Missing values are last in both directions.
        shown = column(driver, "CIDEr")
        assert shown[-1] == ""
        figures = [float(value) for value in shown[:-1]]
        assert len(figures) == 53
        assert figures == sorted(figures, reverse=not up)
    host = cells_table(driver)
    host.find_element("tag name", "input").send_keys('"vision 3" LANGUAGE')
    assert counted(driver) == "12 of 54"
    assert all("vision 3" in cell and "language" in cell for cell in column(driver, "cell"))
    host.find_element("css selector", "select[aria-label=method]").find_element("xpath", "option[@value='rtn']").click()
    assert counted(driver) == "6 of 54"
    assert set(column(driver, "method")) == {"rtn"}
    link = host.find_element("css selector", "tbody a")
    assert link.get_attribute("href").startswith("https://wandb.ai/me/project/runs/rtn-rtn-vision3")


def test_samples_show_the_scene_and_mark_the_words_that_differ(report: Path, driver: Any) -> None:
    show(driver, report)
    images = driver.find_elements("css selector", ".samples img")
    assert len(images) == 8
    assert all(driver.execute_script("return arguments[0].naturalWidth", image) == 48 for image in images)
    # Text that looks like markup is text. Of full precision's answer only the score differs.
    first = text(driver, ".samples article")
    assert "a big bright rose triangle with two dots (and 4 more)" in first
    assert "<b>evaluation-0-000000</b> at 1.00" in first
    changed = driver.execute_script(
        """const one = document.querySelector(".samples .one:not(.full)");
        return ["mark", "del"].map((name) => one.querySelector(name).textContent);"""
    )
    assert changed[1] == "1.00"
    assert float(changed[0]) < 1


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_it_is_legible(report: Path, driver: Any, width: int, scheme: str) -> None:
    show(driver, report, width, scheme)
    assert driver.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches") is (scheme == "dark")
    driver.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    driver.execute_script("document.querySelector('.scroll tbody tr').click()")
    drawn(driver)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    texts, faint = driver.execute_script(FAINT_TEXTS)
    assert texts > 500
    assert faint == []
    # Nothing is drawn beyond a chart's edge.
    over = driver.execute_script(
        """return [...document.querySelectorAll(".plot svg, .picture svg")].filter((svg) => {
          const box = svg.getBoundingClientRect(), host = svg.parentElement.getBoundingClientRect();
          return box.width > host.width + 1 || [...svg.querySelectorAll("text")].some((text) => {
            const own = text.getBoundingClientRect();
            return own.width && (own.left < box.left - 1 || own.right > box.right + 1 || own.bottom > box.bottom + 1);
          });
        }).map((svg) => svg.closest("[aria-label]").getAttribute("aria-label"))"""
    )
    assert over == []


def drawn(driver: Any) -> None:
    """Wait until the browser has drawn the last change."""
    driver.execute_async_script(
        """const done = arguments[0], next = requestAnimationFrame;
        next(() => next(() => next(() => done())));"""
    )


def test_a_narrower_window_and_print_redraw_the_page(report: Path, driver: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    show(driver, report, 1280, "dark")
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    wide = "return Math.max(...[...document.querySelectorAll('.plot svg, .picture svg')].map((svg) => svg.clientWidth))"
    WebDriverWait(driver, 20).until(lambda browser: browser.execute_script(wide) <= 390)
    driver.execute_script("document.querySelector('.scroll tbody tr').click()")
    printed = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", printed)
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    # Ink on white in any colour scheme; without the controls, which are only for pointing; with all rows.
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for selector in ("#cell", ".overview .controls", "input.budget", "nav"):
        assert not driver.find_element("css selector", selector).is_displayed(), selector
    assert driver.find_element("css selector", ".picture svg").is_displayed()
    assert len(column(driver, "cell")) == 54
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert driver.get_log("browser") == []


def test_names_are_whole_and_the_usual_budget_fits(tmp_path: Path, driver: Any) -> None:
    store = Store.open(tmp_path / "runs")
    saved(store, record("none", {}, 16.0, 1.0), np.ones(40))
    for place, bits in enumerate(({"vision": 2}, dict.fromkeys(PARTS, 2))):
        named = record("kmeans method.corrected=True", bits, 3.5 - place / 10, 0.8 - place / 10)
        saved(store, named, 0.8 - place / 10 + np.zeros(40))
    show(driver, written(tmp_path), 390)
    drawn(driver)
    # The budget asked about fits, though all cells are smaller.
    assert text(driver, ".answer").startswith("At 4 bits per weight take kmeans method.corrected=True vision 2: ")
    cut = """return [...document.querySelectorAll(".plot svg [class^=name] text, .plot [aria-label='y-axis tick label'] text")]
      .map((one) => [one.getBoundingClientRect(), one.closest(".plot").getBoundingClientRect(), one.textContent])
      .map(([own, plot, said]) => [said, own.left < plot.left - 1 || own.right > plot.right + 1])"""
    names = driver.execute_script(cut)
    assert any("kmeans method.corrected=True vision 2" in name for name, _ in names)
    assert [name for name, outside in names if outside] == []
    show(driver, tmp_path / "report.html", 1280)
    clipped = """return [...document.querySelector("section .scroll").querySelectorAll("td")]
      .filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.textContent)"""
    assert driver.execute_script(clipped) == []
    assert driver.get_log("browser") == []


def test_on_a_phone_figures_stand_beside_the_names_of_cells_and_no_label_is_cut(tmp_path: Path, driver: Any) -> None:
    store = Store.open(tmp_path / "runs")
    saved(store, record("none", {}, 16.0, 1.0), np.ones(40))
    saved(store, record("rtn", {"embeddings": 2}, 15.0, 0.95), np.full(40, 0.95))
    saved(store, record("gptq", dict.fromkeys(PARTS, 2), 3.0, 0.9), np.full(40, 0.9))
    show(driver, written(tmp_path), 390)
    drawn(driver)
    edges = """const scroll = document.querySelector("section .scroll"), edge = scroll.getBoundingClientRect().right;
      return [...scroll.querySelectorAll("th")].slice(0, 3).map((one) => one.getBoundingClientRect().right <= edge)"""
    assert driver.execute_script(edges) == [True] * 3
    heights = "return [...document.querySelectorAll('section .scroll tbody tr')].map((one) => one.clientHeight)"
    assert max(driver.execute_script(heights)) < 35  # Names take two lines of a row as high as others.
    cut = """return [...document.querySelectorAll(".damages .plot text")].map((one) => [one.textContent,
      one.getBoundingClientRect().left - one.closest(".plot").getBoundingClientRect().left])"""
    labels = driver.execute_script(cut)
    assert "embeddings" in [text for text, _ in labels]
    assert [text for text, left in labels if left < 0] == []


def test_halves_are_rounded_as_in_print(tmp_path: Path, driver: Any) -> None:
    figures = [8.25, 12.25, 8.35, 0.125, 2.5]
    shown = Table("Figures", [Column("figure", 1)], [[value] for value in figures])
    path = tmp_path / "figures.html"
    path.write_text(page.render(Page("A", "", [Section("Figures", [shown])])))
    show(driver, path)
    said = driver.execute_script("return [...document.querySelectorAll('td')].map((one) => one.textContent)")
    assert said == [f"{value:.1f}" for value in figures]


def test_full_precision_alone_says_what_is_missing(tmp_path: Path, driver: Any) -> None:
    saved(Store.open(tmp_path / "runs"), record("none", {}, 16.0, 1.0), np.ones(40))
    show(driver, written(tmp_path))
    assert text(driver, ".answer") == "At 16 bits per weight take full precision: CIDEr 1.00, 0.0001 MB."
    assert "No cell but full precision: no answers to compare with it." in text(driver, "main")


def test_defects_failures_and_cells_that_are_missing_are_told(report: Path) -> None:
    told = report.read_text()
    assert "failed with OutOfMemory: rtn-vision2." in told
    assert "1 of 1 cell has no record yet: run python -m mmq_sweeps -m bits=3 again." in told
    assert "This page: python -m analysis report" in told
    assert f"mmq-sweeps {mmq_sweeps.__version__}, Python " in told


def refused(*_arguments: Any) -> None:
    raise ValueError("not asked for")


def test_a_report_of_many_cells_is_small_and_has_few_rows_in_the_document(
    tmp_path: Path, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = list(itertools.islice(itertools.product(range(2, 15), repeat=3), MANY - 1))
    store = Store.open(tmp_path / "runs")
    saved(store, record("none", {}, 16.0, 1.0))
    for bits in widths:
        bpw, score = 16 - sum(16 - width for width in bits) / 4, 1 - sum(1 / width for width in bits) / 9
        saved(store, record("gptq", dict(zip(PARTS, bits, strict=True)), bpw, score))
    # These take a minute, and are a few rows of the page.
    for name in ("importances", "sensitivities"):
        monkeypatch.setattr(family, name, refused)
    monkeypatch.setattr(content.auditing, "audit", lambda *_: [])
    path = written(tmp_path)
    assert path.stat().st_size < 1.5e6
    show(driver, path)
    assert driver.get_log("browser") == []
    assert counted(driver) == f"{MANY} of {MANY}"
    assert len(column(driver, "cell")) < 80
    driver.execute_script("arguments[0].scrollTop = arguments[0].scrollHeight", scrolled(driver))
    drawn(driver)
    shown: Sequence[str] = column(driver, "cell")
    assert len(shown) < 80
    assert shown[-1] == load([str(tmp_path / "runs")]).frame.apply(assignment, axis=1).iloc[-1]


def scrolled(driver: Any) -> Any:
    return cells_table(driver).find_element("css selector", ".scroll")


def test_named_cells_are_shown_side_by_side(tmp_path: Path, driver: Any) -> None:
    items = [Sample("1", "", "which colour?", ("red",))]
    said = [[("a dark red dot", 1.0), ("a red <b> dot", 0.5), ("", None)]]
    path = tmp_path / "compared.html"
    path.write_text(page.render(Page("A, B", "", [Section("Items", [compared(["A", "B", "C"], items, said)])])))
    show(driver, path)
    shown = driver.execute_script("return [...document.querySelectorAll('.one p')].map((one) => one.innerHTML)")
    score = '<span class="score">{}</span>'.format
    assert shown == [
        "a dark red dot" + score("1.00"),
        "a <del>dark</del> red <mark>&lt;b&gt;</mark> dot" + score("0.50"),
        "<em>(nothing)</em>",
    ]
    assert driver.get_log("browser") == []


def test_a_record_without_scores_is_no_obstacle(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "runs")
    saved(store, record("none", {}, 16.0, 1.0))
    saved(store, record("gptq", {"vision": 3}, 12.0, 0.5))
    assert "No cell of this source has its predictions here: no samples" in written(tmp_path).read_text()


def test_a_warning_is_marked_beside_its_figure_and_low_is_best_where_less_is_better(
    tmp_path: Path, driver: Any
) -> None:
    store = Store.open(tmp_path / "runs")
    for widths in itertools.product((3, 16), repeat=3):
        bits = {part: width for part, width in zip(PARTS, widths, strict=True) if width < 16}
        made = record("gptq", bits, 16.0 - len(bits), 0.1 + len(bits) / 10)
        said = {"warnings": ["68 of 100 answers are identical"]} if len(bits) == 3 else {}
        metrics = {"wer": {**made.metrics["cider"], "higher_is_better": False, **said}}
        saved(store, Record(**{**made.__dict__, "metrics": metrics}))
    show(driver, written(tmp_path))
    (mark,) = cells_table(driver).find_elements("css selector", ".mark")
    assert (mark.text, mark.get_attribute("title")) == ("!", "68 of 100 answers are identical")
    assert mark.find_element("xpath", "..").text == "0.4000!"
    choose(driver, ".overview input[type=number]", "14", "input")
    said = text(driver, ".answer")
    assert ": wer (lower is better) 0.300, 3.00 times full precision's" in said
    assert said.endswith("one bit more takes off 0.100.")
    assert "%" not in said
    choose(driver, ".overview input[type=number]", "13", "input")
    assert text(driver, ".answer .mark") == "!"
    driver.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    drawn(driver)
    fills = driver.execute_script(
        """const maps = document.querySelector("figure[aria-label='Part by part at equal bits']");
        return [...maps.querySelectorAll("[class^=square] rect")].map((square) => square.getAttribute("fill"))"""
    )
    # Alone the parts score 0.2, two together 0.3: the single parts are the bright cells.
    assert (fills[0], set(fills)) == ("#fee838", {"#fee838", "#00224e"})
    assert driver.get_log("browser") == []


def test_a_cell_whose_codebooks_take_more_than_the_budget_says_so(driver: Any, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "runs")
    store.save(record("none", {}, 16.0, 1.0), [])
    for bits, exact in ((3, 5.34), (2, 2.9)):
        made = record("kmeans", dict.fromkeys(PARTS, bits), bits + 0.7, bits / 4)
        total = {**made.size["total"], "bpw_exact": exact}
        store.save(Record(**{**made.__dict__, "size": {**made.size, "total": total}}), [])
    driver.get(written(tmp_path).as_uri())
    for budget, told in (("4", True), ("3", False)):
        choose(driver, "input[aria-label=Budget]", budget, "input")
        assert ("5.34 exact bits" in text(driver, ".answer")) is told
