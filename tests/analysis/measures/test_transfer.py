from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from analysis.__main__ import main
from analysis.cells import Cells
from analysis.figures.catalog import figures
from analysis.load import load
from analysis.measures.transfer import correlations, transfer
from analysis.report.transfer import transfer_section
from mmq_sweeps.store.store import Store
from tests.analysis.grids import PARTS, record, saved

NAMES = {"captions": ("m", "captions"), "questions": ("m", "questions"), "other": ("n", "questions")}
Grid = Sequence[tuple[Mapping[str, int], float, float]]


def kept(folder: Path, families: Mapping[str, Grid], parts: Mapping[str, Sequence[str]] | None = None) -> Cells:
    """Fill a store with families of gptq cells, ``(bits by part, bpw, score)``; a score lies alike about each of 40 items."""
    store = Store.open(folder)
    noise = np.random.default_rng(0).normal(0, 0.2, 40)
    for name, cells in families.items():
        model, task = NAMES[name]
        for bits, bpw, score in cells:
            one = record("gptq", bits, bpw, score)
            own = (parts or {}).get(name, PARTS)
            model_cell = {"checkpoint": model, "parts": {part: {} for part in own}}
            one = replace(
                one,
                id=f"{name}-{one.id}",
                cell={**one.cell, "model": model_cell, "task": {"name": task}},
                names={**one.names, "model": model, "task": task},
            )
            saved(store, one, score + noise - noise.mean())
    return load([str(folder)])


FULL = ({}, 16.0, 1.0)


def test_regret_of_what_is_best_elsewhere_is_the_loss_against_ones_own_best(tmp_path: Path) -> None:
    vision, language = {"vision": 3, "language": 4}, {"vision": 4, "language": 3}
    first = [FULL, (vision, 3.5, 0.9), (language, 3.5, 0.5), ({"vision": 8, "language": 8}, 8.0, 0.99)]
    second = [FULL, (vision, 3.6, 0.6), (language, 3.6, 0.8), ({"vision": 8, "language": 8}, 8.0, 0.97)]
    found = transfer(kept(tmp_path, {"captions": first, "questions": second}))
    rows = found.regrets.set_index(["from", "budget"])
    here = rows.loc[("m, captions", 4.0)]
    assert (here["to"], here["assignments"], here["metric"]) == ("m, questions", 2, "cider")
    assert here["chosen"] == "gptq vision 3 language 4"
    assert here["best"] == "gptq vision 4 language 3"
    assert here["regret"] == pytest.approx(0.2)
    # All cells share the noise of their items, which cancels in a paired difference.
    assert (here["low"], here["high"]) == pytest.approx((0.2, 0.2))
    assert here["by_chance"] == pytest.approx(0.1)
    assert here["full"] == pytest.approx(1.0)
    assert rows.loc[("m, questions", 4.0), "regret"] == pytest.approx(0.4)
    # With more bits both take the same; budgets in between let in nothing new.
    assert rows.loc[("m, captions", 8.0), "regret"] == 0
    assert set(found.regrets["budget"]) == {4.0, 8.0}


def test_parts_are_matched_by_name_and_one_that_only_one_has_takes_its_best(tmp_path: Path) -> None:
    with_connector = [
        FULL,
        ({"vision": 3, "connector": 3, "language": 4}, 3.5, 0.2),
        ({"vision": 3, "connector": 8, "language": 4}, 3.9, 0.9),
        ({"vision": 4, "connector": 3, "language": 3}, 3.5, 0.7),
    ]
    without = [FULL, ({"vision": 3, "language": 4}, 3.5, 0.4), ({"vision": 4, "language": 3}, 3.5, 0.6)]
    cells = kept(tmp_path, {"captions": with_connector, "other": without}, {"other": ("vision", "language")})
    rows = transfer(cells, budgets=[4]).regrets.set_index("from")
    assert rows.loc["m, captions", "chosen"] == "gptq vision 3 language 4"
    assert rows.loc["m, captions", "regret"] == pytest.approx(0.2)
    assert rows.loc["n, questions", "best"] == "gptq vision 3 connector 8 language 4"
    assert rows.loc["n, questions", "regret"] == pytest.approx(0.2)
    # Its best within the budget.
    tight = transfer(cells, budgets=[3.6]).regrets.set_index("from")
    assert tight.loc["n, questions", "regret"] == 0


def test_rank_correlation_is_over_units_quantized_alone_by_one_method_at_one_width(tmp_path: Path) -> None:
    def alone(*damages: float) -> Grid:
        cells = [({part: 3}, 7.0, 1 - damage) for part, damage in zip(PARTS, damages, strict=True)]
        return [FULL, *cells, ({"vision": 2}, 6.5, 0.1)]

    found = transfer(kept(tmp_path, {"captions": alone(0.1, 0.3, 0.2), "questions": alone(0.01, 0.02, 0.05)}))
    (row,) = found.correlations.to_dict("records")
    assert (row["of"], row["bits"], row["units"], row["method"]) == ("parts", 3, 3, "gptq")
    assert row["correlation"] == pytest.approx(0.5)
    assert (row["low"], row["high"]) == pytest.approx((0.5, 0.5))
    pictures = figures(kept(tmp_path, {}), names=["transfer"])
    assert [plot.name for plot in pictures] == ["transfer-regret", "transfer-rank"]
    assert pictures[1].panels[0].values[0][1] == pytest.approx(0.5)
    section = transfer_section(kept(tmp_path, {}))
    assert section is not None
    assert any(
        "median rank correlation of damages by part and unit is 0.50" in line for line in section.blocks[0].lines
    )


def test_correlations_are_those_of_scipy() -> None:
    first, second = np.random.default_rng(1).integers(0, 4, (2, 50, 6)).astype(float)
    first[0] = 1.0
    expected = [spearmanr(*rows).statistic if np.ptp(rows[0]) else np.nan for rows in zip(first, second, strict=True)]
    assert np.allclose(correlations(first, second), expected, equal_nan=True)


def test_what_cannot_be_compared_is_told_with_the_reason(tmp_path: Path) -> None:
    one = kept(tmp_path / "one", {"captions": [FULL, ({"vision": 3}, 9.0, 0.9)]})
    with pytest.raises(ValueError, match="at least two models or tasks; there is m, captions"):
        transfer(one)
    assert transfer_section(one) is None
    apart = {"captions": [FULL, ({"vision": 3}, 9.0, 0.9)], "questions": [FULL, ({"vision": 4}, 9.0, 0.9)]}
    with pytest.raises(
        ValueError,
        match="no assignment of vision, connector, language was measured in both: m, captions to m, questions; m, q",
    ):
        transfer(kept(tmp_path / "two", apart))


def test_the_verb_prints_what_transfers_and_what_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [FULL, ({"vision": 3, "language": 3}, 3.5, 0.5), ({"vision": 4, "language": 4}, 4.5, 0.9)]
    kept(tmp_path, {"captions": cells, "questions": cells})
    told = {}
    for arguments in ([], ["--json", "--max-bpw", "5"]):
        monkeypatch.setattr("sys.argv", ["analysis", "transfer", "--source", str(tmp_path), *arguments])
        main()
        told[bool(arguments)] = capsys.readouterr().out
    assert "best on m, captions, used on m, questions (CIDEr, full precision 1.0000)" in told[False]
    assert "the same" in told[False]
    assert "no rank correlation" in told[False]
    content = json.loads(told[True])
    assert [row["budget"] for row in content["regrets"]] == [5.0, 5.0]
