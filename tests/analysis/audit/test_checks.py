from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.audit.checks import audit
from analysis.audit.settings import never_applied
from analysis.load import load
from tests.analysis.grids import PARTS, stored


def defects(source: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in audit(load([source])):
        found.setdefault(finding.defect, []).append(finding.sentence)
    return found


@pytest.fixture(scope="module")
def study(published: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return the defects that the audit finds in the study's published tables, by table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return defects(f"published:{published}")


def test_what_the_published_uniform_file_never_quantized_is_found(study: dict[str, list[str]]) -> None:
    assert [sentence.split(" is counted")[0] for sentence in study["not applied"]] == [
        "connector mlp",
        "language attention",
    ]
    assert "82 cells lower bits and have exactly the CIDEr and METEOR of full precision" in study["changed nothing"][0]
    assert study["changed nothing"][0].endswith("82 of them quantize nothing but connector mlp and language attention")


def test_distinct_outputs_are_counted_by_predictions_where_all_are_there(published: Path, tmp_path: Path) -> None:
    table = pd.read_csv(published / "uniform_captioning.csv")
    known = table[table["config"].isin([894, 678, 1050])]
    # A fourth row whose score is its own, though its captions are those of another.
    again = known[known["config"] == 894].assign(config=1, CIDEr=1.0)
    pd.concat([known, again]).to_csv(tmp_path / "uniform.csv", index=False)
    (tmp_path / "results").mkdir()
    for number, there in ((894, 894), (678, 678), (1050, 1050), (1, 894)):
        (tmp_path / "results" / f"{number}.json").write_bytes(
            (published / "predictions" / f"{there}.json").read_bytes()
        )
    found = defects(f"published:{tmp_path}")
    assert found["duplicated outputs"] == ["4 cells have 3 distinct outputs, by their predictions"]


def test_a_clean_store_has_no_finding(tmp_path: Path) -> None:
    stored(tmp_path, {"none": [({}, 16.0, 1.0)], "gptq": [({"vision": 4}, 8.0, 0.9), ({"vision": 3}, 7.0, 0.8)]})
    assert defects(str(tmp_path)) == {}


def test_a_cell_that_changed_nothing_is_found(tmp_path: Path) -> None:
    stored(tmp_path, {"none": [({}, 16.0, 1.0)], "gptq": [({"vision": 4}, 8.0, 1.0), ({"vision": 3}, 7.0, 0.8)]})
    found = defects(str(tmp_path))
    assert found["changed nothing"] == ["1 cell lowers bits and has exactly the CIDEr of full precision"]
    assert found["duplicated outputs"][0].startswith("3 cells have 2 distinct outputs")


def test_a_missing_baseline_is_found(tmp_path: Path) -> None:
    stored(tmp_path, {"gptq": [({"vision": 4}, 8.0, 1.0), ({"vision": 3}, 7.0, 0.8)]})
    assert "missing baseline" in defects(str(tmp_path))


def test_a_layer_kind_is_idle_only_if_it_never_changes_a_score() -> None:
    levels = ["16/16/16", "3/3/3", "4/4/4"]
    rows = [(a, b) for a in levels for b in levels for _ in range(1)]
    settings = pd.DataFrame(rows, columns=["vision attention", "vision mlp"]).assign(method="gptq")
    settings["language mlp"] = "16/16/16"
    doubled = pd.concat([settings, settings.assign(**{"language mlp": "3/3/3"})], ignore_index=True)
    doubled.loc[len(doubled)] = ["2/2/2", "2/2/2", "gptq", "16/16/16"]  # Broken: from here on nothing can be lost.
    score = doubled["vision mlp"].map({"16/16/16": 1.0, "3/3/3": 0.7, "4/4/4": 0.8, "2/2/2": 0.0}).to_numpy()
    assert dict(never_applied(doubled, score)) == {"vision attention": 6, "language mlp": 9}
    worse = score - 0.1 * (doubled["vision attention"] == "3/3/3").to_numpy()
    assert dict(never_applied(doubled, worse)) == {"language mlp": 9}


def test_1500_rows_with_451_distinct_predictions_are_told(published: Path, tmp_path: Path) -> None:
    table = pd.read_csv(published / "uniform_captioning.csv")
    table.to_csv(tmp_path / "uniform.csv", index=False)
    (tmp_path / "results").mkdir()
    for place, number in enumerate(table["config"]):
        told = {"predictions": [{"image_id": 1, "caption": f"caption {place % 451}"}], "references": [["a"]]}
        (tmp_path / "results" / f"{number}.json").write_text(json.dumps(told))
    found = defects(f"published:{tmp_path}")
    assert found["duplicated outputs"] == ["1,500 cells have 451 distinct outputs, by their predictions"]


def test_cells_that_should_all_but_tie_are_told(study: dict[str, list[str]]) -> None:
    (told,) = study["scatter"]
    assert told.startswith(
        "64 cells of gptq have every part at 6 bits or more and should all but tie, yet CIDEr lies between"
    )
    assert "standard deviation 0.0320, 4% of it explained by bits" in told


def test_full_precision_that_differs_between_sources_is_told(study: dict[str, list[str]]) -> None:
    (told,) = study["baselines differ"]
    assert "1.2041 in " in told
    assert "1.2853 in " in told


def test_assignments_that_a_grid_lacks_come_with_the_command_that_measures_them(tmp_path: Path) -> None:
    rows = [
        {"vision": 3},
        {"language": 3},
        {"vision": 4},
        {"language": 4},
        {"vision": 3, "language": 4},
        {"vision": 4, "language": 3},
    ]
    rows.append({"vision": 4, "language": 4})
    cells = [(bits, 16.0 - len(bits), 0.9 - index / 100) for index, bits in enumerate(rows)]
    stored(tmp_path, {"none": [({}, 16.0, 1.0)], "gptq": cells})
    assert defects(str(tmp_path))["missing cells"] == [
        "1 of 9 assignments of gptq was not measured: python -m mmq_sweeps model=m task=t method=gptq "
        f"component.vision.bits=3 component.connector.bits=16 component.language.bits=3 store.dir={tmp_path}"
    ]


def test_what_is_no_grid_lacks_nothing(tmp_path: Path) -> None:
    cells = [({part: bits}, 16.0 - bits / 10, 0.9 - bits / 100) for part in PARTS for bits in (3, 4, 5, 6)]
    stored(tmp_path, {"none": [({}, 16.0, 1.0)], "gptq": cells})
    assert "missing cells" not in defects(str(tmp_path))
