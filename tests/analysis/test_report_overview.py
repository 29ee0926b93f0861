"""The data behind the report's first screen, and the files that make up the page."""

from __future__ import annotations

import configparser
import fnmatch
import itertools
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.cells import Cells
from analysis.cells.items import Column as Scores
from analysis.load import load
from analysis.measures.family import families
from analysis.measures.quality import Quality
from analysis.report import page
from analysis.report.columns import numbers_of
from analysis.report.overview import answers, overview, share_intervals
from analysis.report.packing import SIGNS, pack
from mmq_sweeps.store.store import Store
from tests.analysis.grids import record, saved
from tests.analysis.pages import unpacked

ITEMS = tuple(f"{number}" for number in range(50))


def scored(values: np.ndarray) -> dict[str, Scores]:
    return {"cider": Scores(ITEMS, values)}


def test_the_interval_of_a_share_is_paired() -> None:
    full = np.random.default_rng(0).uniform(1, 9, len(ITEMS))
    noise = np.random.default_rng(1).normal(0, 0.5, len(ITEMS))
    rows = [full, 0.9 * full, 0.9 * full + noise - noise.mean()]
    scores = {number: scored(values) for number, values in enumerate(rows)}
    figures = pd.Series([values.mean() for values in rows])
    found = share_intervals(scores, 0, [0, 1, 2], figures, "cider")
    # Full precision itself has none. Where every item keeps the same share there is nothing to doubt, however items vary.
    assert found.keys() == {1, 2}
    assert found[1] == pytest.approx((0.9, 0.9))
    low, high = found[2]
    draws = np.random.default_rng(2).integers(0, len(ITEMS), (4000, len(ITEMS)))
    expected = np.percentile(rows[2][draws].mean(axis=1) / full[draws].mean(axis=1), (2.5, 97.5))
    assert [low, high] == pytest.approx(expected, abs=0.005)


def test_what_cannot_be_paired_has_no_interval() -> None:
    full, other = np.ones(len(ITEMS)), np.full(len(ITEMS), 0.5)
    lacking = {"cider": Scores(ITEMS[1:], other[1:])}
    scores: dict[int, dict[str, Scores]] = {0: scored(full), 1: scored(other), 2: lacking, 3: {}}
    figures = pd.Series([1.0, 0.4, 0.5, 0.5])  # The second is no mean of its items.
    assert share_intervals(scores, 0, [1, 2, 3], figures, "cider") == {}
    assert share_intervals({0: {}, 1: scored(other)}, 0, [1], figures, "cider") == {}
    worthless = {0: scored(np.zeros(len(ITEMS))), 1: scored(other)}
    assert share_intervals(worthless, 0, [1], pd.Series([0.0, 0.5]), "cider") == {}


def test_every_best_cell_within_a_budget_is_among_the_answers() -> None:
    """The answers hold the best cell for any subset of methods, size and budget."""
    draw = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "id": [str(number) for number in range(60)],
            "method": draw.choice(["a", "b", "c"], 60),
            "bpw_paper": draw.integers(4, 20, 60) / 2,
            "bpw_exact": draw.integers(4, 20, 60) / 2,
            "metric.cider": draw.integers(0, 12, 60) / 3,
        }
    )
    quality = Quality("cider")
    found = answers(frame, quality, ["bpw_paper", "bpw_exact"])
    assert len(found) < 40
    for methods in (["a"], ["b", "c"], ["a", "b", "c"]):
        for size in ("bpw_paper", "bpw_exact"):
            for budget in np.arange(2, 11, 0.5):
                rows = frame[frame["method"].isin(methods) & (frame[size] <= budget)]
                if len(rows):
                    assert quality.best(rows, size).index[0] in found


def test_a_family_says_its_metrics_sizes_and_shares(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    scores = np.linspace(1, 2, 40)
    saved(store, record("none", {}, 16.0, 1.5), scores)
    saved(store, record("gptq", {"vision": 3}, 12.0, 1.2), 0.8 * scores)
    cells: Cells = load([str(tmp_path)])
    (family,) = families(cells)
    told = overview(family, numbers_of(cells.frame))
    assert [(one["label"], one["full"], one["higher"]) for one in told["metrics"]] == [("CIDEr", 1.5, True)]
    assert [(one["name"], one["full"]) for one in told["sizes"]] == [
        ("bpw_paper", 16),
        ("bpw_exact", 16.1),
        ("size_bytes", 100),
    ]
    number = cells.frame["method"].tolist().index("gptq")
    assert told["shares"] == {"cider": {number: [0.8, 0.8]}}


TIMES = [
    f"2026-01-{day:02} {minute // 60:02}:{minute % 60:02}:{day:02} UTC" for day in range(1, 29) for minute in (7, 99)
]
COMMANDS = [
    f"python -m mmq_sweeps method={name} bits={bits} x='a  b'" for name in ("rtn", "gptq") for bits in range(50)
]
COLUMNS: list[tuple[list[Any], str]] = [
    ([1, 2, 3], "list"),
    (["x"] * 5, "pool"),
    ([None, "a", None, "a"] * 5, "at"),
    ([0.5], "list"),
    ([True, 1, None, 1.0] * 9, "at"),
    ([*range(2_000)] * 2, "list"),
    ([f"a rather long text with {number}" for number in range(2_000)] * 2, "at"),
    (COMMANDS, "rows"),
    ([None, *TIMES, None], "rows"),
    (["<", "\\", '"', "\u2028", None] * 3, "at"),
]


@pytest.mark.parametrize(("values", "kind"), COLUMNS)
def test_a_column_is_packed_without_loss(values: list[Any], kind: str) -> None:
    packed = json.loads(json.dumps(pack(values)))
    assert list(map(repr, unpacked(packed, len(values)))) == list(map(repr, values))
    assert kind == "list" if isinstance(packed, list) else kind in packed
    assert pack([None, None]) is None


def test_signs_are_safe_in_a_page_and_the_commands_of_thousands_of_cells_take_little() -> None:
    assert not {"<", "\\", '"', " "} & set(SIGNS)
    assert all(sign.isprintable() or sign == "\xad" or unicodedata.category(sign) == "Cn" for sign in SIGNS)
    bits = itertools.product(("rtn", "gptq", "awq", "hqq"), range(2, 12), range(2, 12), range(2, 12))
    texts = [
        f"python -m mmq_sweeps method={name} component.vision.bits={a} component.connector.bits={b} component.language.bits={c}"
        for name, a, b, c in bits
    ]
    assert len(json.dumps(pack(texts), ensure_ascii=False).encode()) < 40_000  # 12 bytes a cell, of 112.


def test_the_library_is_the_one_that_is_locked_and_comes_with_its_licences() -> None:
    folder = page.LIBRARY.parent
    locked = json.loads((folder / "package-lock.json").read_text())["packages"]
    asked = json.loads((folder / "package.json").read_text())["dependencies"]
    named = {name.removeprefix("node_modules/"): one for name, one in locked.items()}
    licences = (folder / "LICENSES.txt").read_text()
    for name, version in asked.items():
        assert named[name]["version"] == version
        assert f"{name} {version} (ISC)" in licences
    built = page.LIBRARY.read_text()
    assert built.startswith("var Plot=")
    # The page's policy forbids running text as code.
    assert "eval(" not in built
    assert "new Function" not in built


def test_what_a_page_is_made_of_is_in_the_wheel() -> None:
    root = page.ASSETS.parent.parent
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    packed = config["options.package_data"]["analysis.report"].split(", ")
    needed = [page.LIBRARY, page.LIBRARY.with_name("LICENSES.txt"), page.ASSETS / "page.css"]
    needed += [page.ASSETS / "page" / name for name in page.SCRIPTS]
    for path in needed:
        name = str(path.relative_to(page.ASSETS))
        assert path.is_file()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in packed), name
    assert {path.name for path in (page.ASSETS / "page").iterdir()} == set(page.SCRIPTS)
