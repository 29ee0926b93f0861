from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.cells.selections import assignment
from analysis.load import load
from analysis.load.published import BLIP2_ITM, BLIP2_OPT
from mmq_sweeps.identity.assignment import BLOCK_GROUPS, LAYER_KINDS
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.analysis.grids import record, saved, stored
from tests.commands import run_forked
from tests.conftest import command_environment


def test_a_store_becomes_a_table(tmp_path: Path) -> None:
    stored(tmp_path, {"none": [({}, 16.0, 1.0)], "gptq": [({"vision": 3}, 12.0, 0.9), ({"vision": 2}, 11.0, 0.4)]})
    frame = load([str(tmp_path)]).frame.sort_values("bpw_paper", ascending=False)
    assert list(frame["bits.vision"]) == [16, 3, 2]
    assert list(frame["bits.language"]) == [16, 16, 16]
    assert list(frame["metric.cider"]) == [1.0, 0.9, 0.4]
    assert [assignment(row) for _, row in frame.iterrows()] == ["full precision", "gptq vision 3", "gptq vision 2"]


def test_two_stores_are_one_table_and_a_conflict_is_told(tmp_path: Path) -> None:
    for name, value in (("a", 0.9), ("b", 0.8)):
        stored(tmp_path / name, {"none": [({}, 16.0, 1.0)], "gptq": [({"vision": 3}, 12.0, value)]})
    cells = load([str(tmp_path / "a"), str(tmp_path / "b")])
    assert len(cells.frame) == 2
    assert len(cells.notes) == 1
    assert "was measured 2 times with different results (cider differs by 0.1)" in cells.notes[0]


def test_a_failed_cell_is_told_and_left_out_of_figures(tmp_path: Path) -> None:
    stored(tmp_path, {"none": [({}, 16.0, 1.0)]})
    one = Store.reading(tmp_path).records()[0]
    error = {"class": "RuntimeError", "message": "boom", "traceback": ""}
    saved(
        Store.reading(tmp_path),
        Record(
            **{
                **one.__dict__,
                "id": "f",
                "status": "failed",
                "error": error,
                "metrics": {},
                "size": {},
                "items_sha256": None,
            }
        ),
    )
    assert load([str(tmp_path)]).notes == (f"1 of 2 cells in {tmp_path} failed and is left out of figures",)


def test_a_record_that_is_being_written_counts_as_not_there(tmp_path: Path) -> None:
    stored(tmp_path, {"none": [({}, 16.0, 1.0)]})
    (tmp_path / "cells" / "half").mkdir()
    (tmp_path / "cells" / "half" / "items.json").write_text("[")
    assert len(load([str(tmp_path)]).frame) == 1


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: None, "is no store (it has no folder 'cells'); run a sweep first"),
        (lambda folder: (folder / "cells").mkdir(), "holds no finished cell yet"),
    ],
)
def test_what_is_no_store_is_an_error(tmp_path: Path, make, told: str) -> None:
    make(tmp_path)
    with pytest.raises((OSError, ValueError), match=told.replace("(", r"\(").replace(")", r"\)")):
        load([str(tmp_path)])


def test_an_unknown_kind_of_source_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown kind 'wnadb'. Choose store, wandb or published."):
        load(["wnadb:me/project"])


def test_the_published_tables_are_read(published: Path) -> None:
    frame = load([f"published:{published}"]).frame
    assert frame.groupby("source").size().to_dict() == {
        "published gptq_captioning.csv": 448,
        "published uniform_captioning.csv": 1500,
    }
    row = frame[frame["config"] == 678].iloc[0]
    assert assignment(row) == "uniform vision 6 (attention) connector 6 (attention) language 6 (attention)"
    assert row["metric.cider"] == 1.195565473292705
    assert row["quantized_size"] == 89226734592
    assert isinstance(row["output"], str)


def test_full_precision_that_differs_between_files_is_told(published: Path) -> None:
    assert any("1.2041" in note and "compare within a file" in note for note in load([f"published:{published}"]).notes)


def test_bits_per_weight_of_the_study_are_those_of_the_models_command() -> None:
    for name, counts in (("blip2_opt_2_7b", BLIP2_OPT), ("blip2_itm_vit_g", BLIP2_ITM)):
        bits = [f"{part}=3" for part in counts.weights]
        done = run_forked("mmq_sweeps.models", [name, "--bits", *bits, "--json"], Path.cwd(), command_environment())
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        quantized = {part: (3, counts.quantized(part, BLOCK_GROUPS, LAYER_KINDS)) for part in counts.weights}
        assert {part: count for part, (_, count) in quantized.items()} == {
            part: size["quantized_weights"]
            for part, size in told["parts"].items()
            if part not in ("embeddings", "head")
        }
        assert counts.parameters == told["total"]["parameters"]
        assert counts.bpw(quantized) == pytest.approx(told["total"]["bpw_paper"], rel=1e-12)


def test_all_layouts_of_a_clone_are_known_by_their_columns(tmp_path: Path) -> None:
    (tmp_path / "awq").mkdir()
    (tmp_path / "awq" / "captions.csv").write_text(
        "vit_bits,qformer_bits,llm_bits,METEOR,CIDEr,model_size\n3,4,8,0.2,1.1,100\n16,16,16,0.3,1.25,200\n"
    )
    columns = "txt_r1,txt_r5,txt_r10,txt_r_mean,img_r1,img_r5,img_r10,img_r_mean,r_mean,agg_metrics,model_size"
    (tmp_path / "awq" / "retrieval.csv").write_text(
        f"vit_bits,qformer_bits,{columns}\n3,4,90,95,99,94,80,90,95,88,91,90,100\n"
    )
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    frame = load([f"published:{tmp_path}"]).frame
    assert sorted(frame["method"]) == ["awq", "awq", "none"]
    retrieval = frame[frame["task"] == "flickr30k_retrieval"].iloc[0]
    assert (retrieval["metric.text_recall_at_1"], retrieval["metric.image_recall_at_10"]) == pytest.approx((0.90, 0.95))
    assert np.isnan(retrieval["bits.language"])
    assert assignment(retrieval) == "awq vision 3 connector 4"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "is a Git LFS pointer"),
        ("vit_bits,qformer_bits,llm_bits,cider,meteor\n3,4,8,1.1,0.2\n3,4,", "row 2 lacks llm_bits, cider, meteor"),
        ("", "is not the table that it was published as"),
        ("a,b\n1,2\n", "no file in it has the columns"),
    ],
)
def test_a_clone_that_was_cut_off_is_an_error(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "gptq_scores.csv").write_text(text)
    with pytest.raises(ValueError, match=told):
        load([f"published:{tmp_path}"])


def test_predictions_of_a_row_are_read(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "clone")
    cells = load([f"published:{tmp_path / 'clone'}"])
    row = cells.frame[cells.frame["config"] == 894].iloc[0]
    items = cells.items(row)
    assert items is not None
    assert len(items) == 1000
    assert cells.items(cells.frame[cells.frame["config"] == 1].iloc[0]) is None


def test_the_table_goes_through_parquet_unchanged(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "cells.parquet"
    arguments = ["export", "--source", f"published:{published}", "--out", str(out)]
    done = run_forked("analysis", arguments, tmp_path, command_environment())
    assert "1948 cells" in done.stdout
    pd.testing.assert_frame_equal(pd.read_parquet(out), load([f"published:{published}"]).frame, check_dtype=False)


def exported(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["analysis", "export", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize("kind", [".parquet", ".csv"])
def test_predictions_and_scores_by_item_are_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    stored(tmp_path / "runs", {"none": [({}, 16.0, 1.0)], "gptq": [({"vision": 3}, 12.0, 0.9)]}, items=7)
    saved(Store.open(tmp_path / "runs"), record("rtn", {"vision": 3}, 12.0, 0.5))  # It has none.
    out, items = tmp_path / "cells.csv", tmp_path / f"items{kind}"
    assert exported(monkeypatch, "--source", tmp_path / "runs", "--out", out, "--items", items) == 0
    found = pd.read_parquet(items) if kind == ".parquet" else pd.read_csv(items)
    assert list(found.columns) == ["cell", "item", "prediction", "metric.cider"]
    assert found.groupby("cell").size().to_dict() == {"none": 7, "gptq-vision3": 7}
    means = found.groupby("cell")["metric.cider"].mean()
    cells = pd.read_csv(out).set_index("id")["metric.cider"]
    assert means["gptq-vision3"] == pytest.approx(cells["gptq-vision3"])


def test_items_that_no_source_has_are_an_error_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(Store.open(tmp_path / "runs"), record("rtn", {"vision": 3}, 12.0, 0.5))
    out = tmp_path / "cells.csv"
    assert exported(monkeypatch, "--source", tmp_path / "runs", "--out", out, "--items", tmp_path / "items.csv") == 2
    assert "--items: no cell of these sources has predictions and scores by item" in capsys.readouterr().err
    assert exported(monkeypatch, "--source", tmp_path / "runs", "--out", out, "--items", tmp_path / "items.txt") == 2
    assert "items.txt: unknown kind of file '.txt'. Choose .parquet or .csv." in capsys.readouterr().err
    assert not out.exists()


def configuration(folder: Path, number: int, *entries: tuple[str, str, str, int]) -> None:
    names = ("model_part", "layer_group", "layer_type", "num_bits")
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / f"{number}.json").write_text(
        json.dumps([dict(zip(names, entry, strict=True)) for entry in entries])
    )


def uniform_rows(published: Path, folder: Path, *numbers: int) -> None:
    table = pd.read_csv(published / "uniform_captioning.csv")
    table[table["config"].isin(numbers)].to_csv(folder / "uniform.csv", index=False)


def test_configurations_say_what_a_row_quantized(published: Path, tmp_path: Path) -> None:
    uniform_rows(published, tmp_path, 894, 678)
    configuration(tmp_path, 894, ("QFORMER", "MIDDLE", "MLP", 5), ("QFORMER", "LAST", "MLP", 5))
    # The row has attention of all blocks of all parts at 6 bits.
    configuration(tmp_path, 678, ("VIT", "ALL", "BOTH", 4), ("LLM", "FIRST", "MLP", 16))
    configuration(tmp_path, 7, ("VIT", "ALL", "BOTH", 4))
    cells = load([f"published:{tmp_path}"])
    shown = cells.frame.set_index("config")
    assert assignment(shown.loc[894]) == "uniform connector 5 (middle+end mlp)"
    assert assignment(shown.loc[678]) == "uniform vision 4"
    assert shown.loc[678, "bpw_paper"] == pytest.approx(16 - 12 * 39 * (7_929_856 + 17_301_504) / 3_744_679_936)
    (note,) = [note for note in cells.notes if "configuration" in note]
    assert note.startswith("1 of 2 rows states something else than its configuration; what is configured is shown.")
    assert "config 678: row vision 6 (front+middle+end attention)" in note
    assert cells.history().lacking == ("1 of 3 configurations have no row of results: 7",)
    assert load([f"published:{tmp_path}"]).notes == cells.notes


def test_a_configuration_of_several_widths_is_told(published: Path, tmp_path: Path) -> None:
    uniform_rows(published, tmp_path, 894)
    configuration(tmp_path, 894, ("QFORMER", "MIDDLE", "MLP", 5), ("QFORMER", "LAST", "MLP", 3))
    cells = load([f"published:{tmp_path}"])
    assert any("several bit-widths in a part, shown as the row has it" in note for note in cells.notes)
    assert assignment(cells.frame.iloc[0]) == "uniform connector 5 (middle+end mlp)"


def test_a_configuration_that_was_cut_off_is_an_error(published: Path, tmp_path: Path) -> None:
    uniform_rows(published, tmp_path, 894)
    configuration(tmp_path, 894)
    (tmp_path / "configs" / "894.json").write_text('[{"model_part": "VIT"')
    with pytest.raises(ValueError, match=r"894\.json: is no configuration of the study .* fetch it again"):
        load([f"published:{tmp_path}"])


def test_predictions_that_were_cut_off_are_an_error(published: Path, tmp_path: Path) -> None:
    uniform_rows(published, tmp_path, 894)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "894.json").write_text((published / "predictions" / "894.json").read_text()[:999])
    with pytest.raises(ValueError, match=r"894\.json: holds no predictions of the study .* fetch it again"):
        load([f"published:{tmp_path}"])


def test_a_table_with_fewer_rows_than_were_published_is_told(published: Path, tmp_path: Path) -> None:
    uniform_rows(published, tmp_path, 894, 678)
    assert "uniform.csv has 2 of the 1,500 rows that were published" in load([f"published:{tmp_path}"]).notes


def test_gptq_columns_that_nobody_knows_are_kept(tmp_path: Path) -> None:
    (tmp_path / "gptq.csv").write_text("vit_bits,qformer_bits,llm_bits,cider,meteor,machine\n3,4,8,1.1,0.2,a100\n")
    assert load([f"published:{tmp_path}"]).frame.loc[0, "machine"] == "a100"


def test_a_finished_cell_counts_before_one_that_failed_later(tmp_path: Path) -> None:
    stored(tmp_path / "a", {"none": [({}, 16.0, 1.0)]})
    one = Store.reading(tmp_path / "a").records()[0]
    error = {"class": "RuntimeError", "message": "boom", "traceback": ""}
    lost = {"metrics": {}, "size": {}, "items_sha256": None, "created": "2027-01-01T00:00:00.000+00:00"}
    saved(Store.open(tmp_path / "b"), Record(**{**one.__dict__, **lost, "status": "failed", "error": error}))
    frame = load([str(tmp_path / "a"), str(tmp_path / "b")]).frame
    assert frame[["status", "metric.cider"]].to_numpy().tolist() == [["done", pytest.approx(1.0)]]


def variant(folder: Path, name: str, group_size: int, samples: int, limit: int = 40) -> None:
    """Save a gptq cell with a group size, calibration samples and a task of its own."""
    made = record("gptq", {"vision": 3}, 12.0, group_size / 100)
    method = {"_target_": "mmq_sweeps.methods.gptq.GPTQ", "group_size": group_size}
    cell = {**made.cell, "method": method, "calibration": {"samples": samples}, "task": {"limit": limit}}
    saved(Store.open(folder), Record(**{**made.__dict__, "id": name, "cell": cell}))


def test_cells_of_one_method_that_differ_in_its_fields_are_told_apart(tmp_path: Path) -> None:
    variant(tmp_path, "a", 64, 16)
    variant(tmp_path, "b", 32, 16)
    assert list(load([str(tmp_path)]).frame["method"]) == ["gptq method.group_size=64", "gptq method.group_size=32"]


def test_cells_of_one_name_and_different_tasks_are_not_compared(tmp_path: Path) -> None:
    variant(tmp_path, "a", 64, 16)
    variant(tmp_path, "b", 64, 16, limit=24)
    titles = [title for title, _ in load([str(tmp_path)]).families()]
    assert len(titles) == 2
    assert all(title.startswith("m, t [") for title in titles)
