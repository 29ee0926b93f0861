from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.load import load
from analysis.measures.flips import flips, flips_of
from mmq_sweeps.metrics.intervals import resample
from mmq_sweeps.store.store import Store
from tests.analysis.grids import record


def kept(
    folder: Path,
    cells: Mapping[str, Sequence[tuple[str, str, float]]],
    metric: str = "gqa_accuracy",
    higher: bool = True,
    pictures: Sequence[int] | None = None,
) -> Path:
    """Fill a store from ``{method: [(item, prediction, score)]}``; ``none`` is full precision."""
    store = Store.open(folder)
    for method, answers in cells.items():
        bits = {} if method == "none" else {"vision": 4}
        value = float(np.mean([score for *_, score in answers]))
        told = {"value": value, "interval": [value, value], "higher_is_better": higher, "count": len(answers)}
        items = [{"id": item, "prediction": text, "scores": {metric: score}} for item, text, score in answers]
        for item, picture in zip(items, pictures or (), strict=False):
            item["group"] = f"picture {picture}"
        store.save(replace(record(method, bits, 16.0 if not bits else 8.0, value), metrics={metric: told}), items)
    return folder


def answers(texts: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str, float]]:
    return [(str(place), text, score) for place, (text, score) in enumerate(zip(texts, scores, strict=True))]


def test_answers_are_compared_as_the_metric_normalizes_them(tmp_path: Path) -> None:
    full = answers(["two", "red.", "a dog", "yes", "no"], [1, 1, 1, 0, 0])
    cell = answers(["2", "Red", "cat", "no", "maybe"], [1, 1, 0, 1, 0])
    found = flips_of(load([str(kept(tmp_path, {"none": full, "rtn": cell}))]))
    row = found.table.loc["rtn-vision4"]
    assert row["flips"] == pytest.approx(3 / 5)
    assert row["lost"] == pytest.approx(1 / 3)
    assert row["gained"] == pytest.approx(1 / 3)
    assert (row["flipped"], row["items"]) == (3, 5)
    assert found.full == "none"
    assert not found.graded


def test_answers_that_only_the_metric_or_only_an_article_tells_apart_are_flips(tmp_path: Path) -> None:
    full, cell = answers(["A", "5", "B.", "a"], [1, 1, 1, 0]), answers(["the", "-5", "b", ""], [0, 0, 1, 0])
    found = flips_of(load([str(kept(tmp_path, {"none": full, "rtn": cell}))]))
    assert found.table.loc["rtn-vision4", "flipped"] == 3


@pytest.mark.parametrize(("higher", "lost"), [(True, 0.5), (False, 0.25)])
def test_captions_are_compared_by_text_and_by_whether_the_score_fell(tmp_path: Path, higher: bool, lost: float) -> None:
    full = answers(["a dog", "a cat", "two", "x", "same"], [0.5, 0.5, 0.5, 0.5, 0.1])
    # A blank is no difference, a score that stayed is neither worse nor better, and a score alone is no flip.
    cell = answers(["A dog", "a cow", "2", "y", " same "], [0.4, 0.3, 0.9, 0.5, 0.9])
    found = flips_of(load([str(kept(tmp_path, {"none": full, "rtn": cell}, "cider", higher))]))
    row = found.table.loc["rtn-vision4"]
    assert found.graded
    assert (row["flips"], row["lost"], row["gained"]) == pytest.approx((0.8, lost, 0.75 - lost))


def test_questions_about_one_picture_are_drawn_together(tmp_path: Path) -> None:
    flipped = np.repeat(np.random.default_rng(2).integers(0, 2, 30), 4)
    full = answers(["yes"] * 120, [1.0] * 120)
    cell = answers([("yes", "no")[flip] for flip in flipped], (1.0 - flipped).tolist())
    widths = []
    for folder, pictures in (("apart", None), ("together", [place // 4 for place in range(120)])):
        kept(tmp_path / folder, {"none": full, "rtn": cell}, pictures=pictures)
        row = flips_of(load([str(tmp_path / folder)])).table.loc["rtn-vision4"]
        assert row["flips"] == flipped.mean()
        widths.append(row["flips_high"] - row["flips_low"])
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.15)


def test_nothing_flipped_leaves_no_share_of_it(tmp_path: Path) -> None:
    same = answers(["yes", "no"], [1, 0])
    row = flips_of(load([str(kept(tmp_path, {"none": same, "rtn": same}))])).table.loc["rtn-vision4"]
    assert row["flips"] == row["flips_low"] == row["flips_high"] == 0
    assert np.isnan(row["lost"])
    assert np.isnan(row["gained"])


def test_retrieval_is_compared_by_the_first_result_and_an_image_is_drawn_with_its_texts(tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def answered(wrong: Sequence[bool]) -> list[tuple[str, str, float]]:
        queries = [name for image in range(30) for name in (f"i{image}", f"i{image}/0", f"i{image}/1")]
        told = [
            {"rank": int(miss), "first": ["other" if miss else f"right of {name}", f"right of {name}"]}
            for name, miss in zip(queries, wrong, strict=True)
        ]
        return [(name, json.dumps(one), float(one["rank"] == 0)) for name, one in zip(queries, told, strict=True)]

    # Queries of an image turn wrong together.
    missed = np.repeat(random.random(30) < 0.4, 3)
    cells = {"none": answered(np.zeros(90, dtype=bool).tolist()), "rtn": answered(missed.tolist())}
    row = flips_of(load([str(kept(tmp_path, cells, "text_recall_at_1"))])).table.loc["rtn-vision4"]
    assert row["flips"] == pytest.approx(missed.mean())
    assert (row["lost"], row["gained"]) == (1, 0)
    images = resample(missed.reshape(30, 3).mean(axis=1)[:, None])[:, 0] / 30
    assert (row["flips_low"], row["flips_high"]) == pytest.approx(tuple(np.percentile(images, (2.5, 97.5))))


def test_cells_that_cannot_be_compared_are_counted(tmp_path: Path) -> None:
    full = answers(["yes", "no"], [1, 0])
    kept(tmp_path, {"none": full, "rtn": full, "gptq": answers(["yes"], [1])})
    Store.open(tmp_path).save(record("awq", {"vision": 4}, 8.0, 1.0))
    cells = load([str(tmp_path)])
    (found,) = flips(cells, "gqa_accuracy")
    assert list(found.table.index) == ["rtn-vision4"]
    assert found.notes == (
        "1 cell without answers by item left out",
        "1 cell with other items than full precision left out",
    )


def test_full_precision_alone_is_said(tmp_path: Path) -> None:
    (found,) = flips(load([str(kept(tmp_path, {"none": answers(["yes"], [1])}))]))
    assert found.table.empty
    assert found.notes == ("no cell but full precision: no answers to compare with it",)


def test_without_full_precision_there_are_no_flips(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="m, t: has no full-precision cell; run method=none"):
        flips(load([str(kept(tmp_path, {"rtn": answers(["yes"], [1])}))]))


def test_the_verb_prints_flips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full, cell = answers(["yes", "no", "4"], [1, 1, 0]), answers(["yes", "yes", "4"], [1, 0, 0])
    kept(tmp_path, {"none": full, "rtn": cell})
    told: dict[str, Any] = {}
    for arguments in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["analysis", "flips", "--source", str(tmp_path), *arguments])
        main()
        told["json" if arguments else "text"] = capsys.readouterr().out
    assert "33.3%" in told["text"]
    assert "100.0%" in told["text"]
    (family,) = json.loads(told["json"])
    assert family["cells"][0]["flips"] == pytest.approx(1 / 3)
    assert family["cells"][0]["assignment"] == "rtn vision 4"
