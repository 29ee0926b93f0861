"""The audit reports every defect that is there, and none that is not."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from analysis.audit.checks import audit
from analysis.load import load
from analysis.measures.recommend import recommend
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.store.record import Record
from tests.faults.cells import PARTS, made, stored

RECALLS = {"text_recall_at_1": 0.5, "image_recall_at_1": 0.4}


def defects(*sources: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in audit(load(list(sources))):
        found.setdefault(finding.defect, []).append(finding.sentence)
    return found


# Nothing is invented.


def test_a_cell_that_ties_with_full_precision_in_one_metric_of_several_changed_something(tmp_path: Path) -> None:
    tied = made("awq", {"vision": 8}, 9.0, {**RECALLS, "image_recall_at_1": 0.39})
    assert "changed nothing" not in defects(stored(tmp_path, made("none", {}, 16.0, RECALLS), tied))


def test_a_cell_that_ties_in_every_metric_changed_nothing_by_its_answers(tmp_path: Path) -> None:
    full, same, other = (
        made("none", {}, 16.0, RECALLS),
        made("awq", {"vision": 8}, 9.0, RECALLS),
        made("rtn", {"vision": 8}, 9.0, RECALLS),
    )
    said = [f"answer {number}" for number in range(20)]
    says = {full.id: said, same.id: said, other.id: [*said[1:], "another"]}
    found = defects(stored(tmp_path, full, same, other, says=says))
    assert found["changed nothing"] == ["1 cell lowers bits and has exactly the TR@1 and IR@1 of full precision"]
    assert found["duplicated outputs"] == ["3 cells have 2 distinct outputs, by their predictions"]


def test_outputs_are_told_apart_by_predictions_and_by_scores_only_without(tmp_path: Path) -> None:
    scores = [0.5, 0.5, 0.4, 0.4, 0.3]
    records = [made("none", {}, 16.0, {"cider": 0.9})]
    records += [
        made("gptq", {"vision": 2 + place}, 9.0 + place, {"cider": score}) for place, score in enumerate(scores)
    ]
    says = {one.id: [f"{one.id} {number}" for number in range(20)] for one in records}
    assert "duplicated outputs" not in defects(stored(tmp_path, *records, says=says))


def test_recalls_of_which_no_cell_ties_in_all_are_not_called_unchanged_in_the_published_layout(tmp_path: Path) -> None:
    recalls = ("txt_r1", "txt_r5", "txt_r10", "img_r1", "img_r5", "img_r10")
    lines = [",".join(("vit_bits", "qformer_bits", *recalls))]
    lines += [
        "16,16,97.6,100.0,100.0,89.7,98.1,98.9",
        "8,8,97.6,100.0,100.0,89.6,98.1,98.9",
        "4,16,97.6,99.9,100.0,89.7,98.0,98.9",
    ]
    (tmp_path / "awq_retrieval.csv").write_text("\n".join(lines) + "\n")
    found = defects(f"published:{tmp_path}")
    assert "changed nothing" not in found
    assert "duplicated outputs" not in found


def test_published_recalls_are_shares_as_our_own(tmp_path: Path) -> None:
    recalls = ("txt_r1", "txt_r5", "txt_r10", "img_r1", "img_r5", "img_r10")
    (tmp_path / "awq.csv").write_text(
        ",".join(("vit_bits", "qformer_bits", *recalls)) + "\n16,16,97.6,100.0,100.0,89.7,98.1,98.9\n"
    )
    row = load([f"published:{tmp_path}"]).frame.iloc[0]
    assert [row[f"metric.{name}"] for name in ("text_recall_at_1", "image_recall_at_10")] == pytest.approx(
        [0.976, 0.989]
    )


def test_figures_written_in_another_order_of_sums_are_no_conflict(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    for name, figure in (("a", value), ("b", 0.3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gptq.csv").write_text(
            f"vit_bits,qformer_bits,llm_bits,cider,meteor\n16,16,16,1.25,{figure!r}\n3,4,8,1.1,{figure!r}\n"
        )
    assert value != 0.3
    cells = load([f"published:{tmp_path}"])
    assert not [note for note in cells.notes if "different results" in note]
    assert "measured twice" not in defects(f"published:{tmp_path}")
    assert "do not tie" not in defects(f"published:{tmp_path}")


def test_families_of_other_settings_have_other_baselines_and_that_is_no_defect(tmp_path: Path) -> None:
    records = [
        made("none", {}, 16.0, {"cider": value}, task={"limit": limit}) for limit, value in ((20, 5.0), (10, 4.0))
    ]
    assert "baselines differ" not in defects(stored(tmp_path, *records))


def test_a_grid_with_a_group_size_of_one_part_lacks_nothing(tmp_path: Path) -> None:
    records = [made("none", {}, 16.0, {"cider": 5.0})]
    for widths in itertools.product((3, 4, 16), repeat=2):
        parts: dict[str, Any] = {
            part: {"bits": width} for part, width in zip(("vision", "language"), widths, strict=True) if width < 16
        }
        if "vision" in parts:
            parts["vision"]["group_size"] = 64
        if parts:
            records.append(made("rtn", parts, 4.0 + sum(widths) / 9, {"cider": 3 + sum(widths) / 100}))
    assert "missing cells" not in defects(stored(tmp_path, *records))


# A command for a missing cell measures that cell.

SETTINGS = [
    ["task.limit=7", "model.generation.caption.num_beams=2", "+model.generation.caption.repetition_penalty=1.5"],
    ["model.dtype=bfloat16", "task.data.seed=3"],
    ["model.prompts.caption='it''s [a] photo, of'", "task.metrics=[meteor,cider]"],
    ["task.prompt='say: {x} = \"1\" \\\\'"],
    ["method.group_size=32", "calibration.samples=5", "seed=3"],
    ["component.vision.group_size=16", "method.damping=0.02", "method.act_order=false"],
    [
        "model=tiny_llava",
        "task=scenes_vqa",
        "calibration.samples=8",
        "+model.generation.question.repetition_penalty=1.5",
    ],
    ["model=tiny_blip2_itm", "task=scenes_retrieval", "task.shortlist=5"],
]


def measured(composed: Callable[..., Any], overrides: list[str], widths: list[dict[str, int]]) -> list[Cell]:
    """Return the cells of GPTQ with these bits of each part."""
    config = composed(*[one.replace("''", "\\'") for one in overrides], "method=gptq")
    cells = []
    for bits in widths:
        for part, width in bits.items():
            OmegaConf.update(config, f"component.{part}.bits", width)
        cells.append(plan([config]).cells[-1])
    return cells


@pytest.mark.parametrize("overrides", SETTINGS, ids=" ".join)
def test_the_command_for_a_missing_cell_has_all_its_settings_and_its_store(
    tmp_path: Path, composed: Callable[..., Any], overrides: list[str]
) -> None:
    parts = list(composed(*overrides[:1]).model.parts) if overrides[0].startswith("model=") else list(PARTS)
    rest = dict.fromkeys(parts[2:], 16)
    widths = [(3, 3), (3, 8), (8, 8), (3, 16), (16, 8), (8, 3)]
    cells = measured(composed, overrides, [{**dict(zip(parts, pair, strict=False)), **rest} for pair in widths])
    *there, missing = [cells[0].baseline(), *cells]
    folder = tmp_path / "my runs"
    stored(folder, *(_record(cell, 5 + place / 10) for place, cell in enumerate(there)))
    (told,) = defects(str(folder))["missing cells"]
    commands = [shlex.split(one) for one in told.partition("not measured: ")[2].split("; ")]
    assert all(words[:3] == ["python", "-m", "mmq_sweeps"] for words in commands)
    assert all(f"store.dir='{folder}'" in words for words in commands)
    assert missing.id in [plan([composed(*words[3:])]).cells[-1].id for words in commands]


def _record(cell: Cell, score: float) -> Record:
    one = made(cell.names["method"], {}, 16.0 - score, {"cider": score}, has=list(cell.model["parts"]))
    effective = {key: value for key, value in cell.effective.items() if key != "semantics"}
    size = {
        **one.size,
        "parts": {part: {"quantized_weights": 100 * (part in cell.parts)} for part in cell.model["parts"]},
    }
    return Record(**{**one.__dict__, "id": cell.id, "cell": effective, "names": cell.names, "size": size})


def test_what_recommend_would_measure_has_its_settings_and_its_store(tmp_path: Path) -> None:
    records = [made("none", {}, 16.0, {"cider": 1.0}, task={"limit": 7}, names=("tiny_blip2", "scenes_caption"))]
    for widths in itertools.product((2, 3, 4, 8), repeat=3):
        bits = dict(zip(PARTS, widths, strict=True))
        score = 1.0 - sum((8 - width) ** 2 for width in widths) / 200
        if not (bits["vision"] == 4 and bits["language"] == 4):
            records.append(
                made(
                    "gptq",
                    bits,
                    16 - sum(16 - width for width in widths) / 4,
                    {"cider": score},
                    task={"limit": 7},
                    names=("tiny_blip2", "scenes_caption"),
                    fields={"group_size": 32},
                )
            )
    (found,) = recommend(load([stored(tmp_path / "s", *records)]), max_bpw=7.0)
    assert found.candidates
    for candidate in found.candidates:
        assert (
            "task=scenes_caption task.limit=7 method=gptq method.group_size=32 component.vision.bits=4"
            in candidate["command"]
        )
        assert candidate["command"].endswith(f"store.dir={tmp_path / 's'}")


# Identical answers in the stored items.

FULL = made("none", {}, 16.0, {"cider": 5.8}, count=100)
CAPTIONS = [f"caption {number}" for number in range(100)]


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (["a red circle"] * 68 + CAPTIONS[68:], "gptq vision 2 answers 'a red circle' to 68 of 100"),
        ([""] * 100, "gptq vision 2 says nothing to any of 100"),
        ([" "] * 6 + CAPTIONS[6:], "gptq vision 2 answers nothing to 6 of 100"),
        (["a red circle"] * 30 + CAPTIONS[30:], "gptq vision 2 answers 'a red circle' to 30 of 100"),
    ],
)
def test_a_cell_that_gives_most_items_one_answer_or_none_is_told(tmp_path: Path, says: list[str], told: str) -> None:
    broken = made("gptq", {"vision": 2}, 5.0, {"cider": 0.1}, count=100)
    (found,) = defects(stored(tmp_path, FULL, broken, says={FULL.id: CAPTIONS, broken.id: says}))["identical answers"]
    assert found == f"1 cell gives many items one answer: {told}"


def test_answers_that_are_right_for_most_items_are_no_defect(tmp_path: Path) -> None:
    full = made("none", {}, 16.0, {"vqa_accuracy": 0.8}, count=100)
    fine, broken = (
        made("gptq", {"vision": bits}, 5.0 + bits, {"vqa_accuracy": bits / 10}, count=100) for bits in (4, 2)
    )
    yes = {full.id: 60, fine.id: 65, broken.id: 100}
    says = {name: ["yes"] * number + [f"{name} no"] * (100 - number) for name, number in yes.items()}
    (found,) = defects(stored(tmp_path, full, fine, broken, says=says))["identical answers"]
    assert found == "1 cell gives many items one answer: gptq vision 2 says 'yes' to all of 100"


def test_ranks_of_a_retriever_are_no_identical_answers(tmp_path: Path) -> None:
    records = [made("none", {}, 16.0, {"recall_at_1": 0.9}), made("gptq", {"vision": 4}, 8.0, {"recall_at_1": 0.8})]
    says = {
        one.id: ['{"rank": 0, "found": "x"}'] * 19 + [f'{{"rank": {number}}}'] for number, one in enumerate(records)
    }
    assert "identical answers" not in defects(stored(tmp_path, *records, says=says))


def test_a_retriever_that_finds_one_image_for_every_text_is_told(tmp_path: Path) -> None:
    records = [made("none", {}, 16.0, {"recall_at_1": 0.9}), made("gptq", {"vision": 4}, 8.0, {"recall_at_1": 0.1})]

    def says(images: list[str]) -> list[str]:
        return [f'{{"rank": 0, "first": ["{image}"]}}' for image in images]

    told = {records[0].id: says([str(place) for place in range(20)]), records[1].id: says(["7"] * 20)}
    (found,) = defects(stored(tmp_path, *records, says=told))["identical answers"]
    assert found == "1 cell gives many items one answer: gptq vision 4 says '7' to all of 20"


def test_cells_measured_on_fewer_items_than_asked_are_told(tmp_path: Path) -> None:
    full, fewer = (
        made("none", {}, 16.0, {"cider": 5.8}, count=20),
        made("gptq", {"vision": 4}, 8.0, {"cider": 5.0}, count=18),
    )
    left_out = made("rtn", {"vision": 4}, 8.0, {"cider": 4.0}, notes={"missing": {"images": 1, "items": 3}})
    (found,) = defects(stored(tmp_path / "a", full, fewer, left_out))["fewer items"]
    assert found == (
        "2 cells were measured on fewer items than asked: gptq vision 4: CIDEr over 18 of 20 items; "
        "rtn vision 4: 3 items were left out"
    )
    asked = [
        made("none", {}, 16.0, {"cider": 5.8}, task={"limit": 25}),
        made("rtn", {"vision": 4}, 8.0, {"cider": 4.0}, task={"limit": 25}),
    ]
    (found,) = defects(stored(tmp_path / "b", *asked))["fewer items"]
    assert found.startswith(
        "2 cells were measured on fewer items than asked: full precision: CIDEr over 20 of 25 items"
    )


@pytest.mark.parametrize("key", ["images", "processor", "generation"])
def test_cells_whose_records_tell_of_other_files_are_told(tmp_path: Path, key: str) -> None:
    told = [
        made("none", {}, 16.0, {"cider": 5.8}, notes={key: "sha256:1"}),
        made("rtn", {"vision": 4}, 8.0, {"cider": 4.0}, notes={key: "sha256:2"}),
    ]
    (found,) = defects(stored(tmp_path / "a", *told))["records differ"]
    assert found == f"{key} differs between the records: 1 cell has one, 1 other another; they are not comparable"
    alike = [Record(**{**one.__dict__, "notes": {key: "sha256:1"}}) for one in told]
    assert "records differ" not in defects(stored(tmp_path / "b", *alike))


def test_records_of_one_cell_that_disagree_are_told_with_what_differs(tmp_path: Path) -> None:
    def cell(value: float, images: str, version: str) -> Record:
        return made(
            "rtn", {"vision": 4}, 8.0, {"cider": value}, notes={"images": images}, versions={"transformers": version}
        )

    sources = [
        stored(tmp_path / name, FULL, cell(*told))
        for name, told in (("a", (5.0, "1", "5.22")), ("b", (5.5, "2", "5.23")))
    ]
    (found,) = defects(*sources)["measured twice"]
    assert (
        "(rtn vision 4) has 2 records: CIDEr differs by 0.5; their records differ in images and versions.transformers"
        in found
    )
    # The same figure from other images is a coincidence; from another library it is none to speak of.
    for images, count in (("2", 1), ("1", 0)):
        other = stored(tmp_path / f"c{images}", FULL, cell(5.0, images, "5.23"))
        assert len(defects(sources[0], other).get("measured twice", [])) == count


def test_warnings_in_records_are_told_by_cell(tmp_path: Path) -> None:
    warned = made(
        "gptq",
        {"vision": 2},
        5.0,
        {"cider": 0.1, "meteor": 0.1},
        warnings={"cider": ["all empty"], "meteor": ["all empty"]},
    )
    (found,) = defects(stored(tmp_path, made("none", {}, 16.0, {"cider": 5.8, "meteor": 0.5}), warned))["warnings"]
    assert found == "1 cell carries warnings: gptq vision 2, CIDEr: all empty; gptq vision 2, METEOR: all empty"


def test_where_less_is_better_broken_cells_are_those_of_the_highest_figures(tmp_path: Path) -> None:
    # At 2 bits of vision nothing is left at any width of language; elsewhere language alone decides.
    records = [made("none", {}, 16.0, {"wer": 0.1}, lower=["wer"])]
    for vision, language in itertools.product((2, 3, 4, 16), (3, 4, 5, 6, 8)):
        parts: dict[str, Any] = {"language": language}
        if vision < 16:
            parts["vision"] = {"bits": vision, "layers": ["attention"]}
        wer = 1.0 if vision == 2 else 0.1 + (16 - language) / 100
        records.append(made("gptq", parts, 4.0 + vision / 9 + language / 90, {"wer": wer}, lower=["wer"]))
    (found,) = defects(stored(tmp_path, *records))["not applied"]
    assert found.startswith("vision attention is counted as quantized in 15 cells and never changes wer")


# Methods are each compared with full precision, never with each other.


def test_a_layer_kind_that_one_of_two_methods_never_applies_is_found(tmp_path: Path) -> None:
    records = [made("none", {}, 16.0, {"cider": 1.0})]
    for method, damage, applied in (("gptq", 0.01, 0), ("awq", 0.02, 1)):
        for vision, language, layers in itertools.product(
            (16, 3, 4), (16, 3, 4), (["attention"], ["attention", "mlp"])
        ):
            parts: dict[str, Any] = {} if vision == 16 else {"vision": vision}
            if language < 16:
                parts["language"] = {"bits": language, "layers": layers}
            if not parts or (language == 16 and layers == ["attention"]):
                continue
            lost = (16 - vision) * damage + (16 - language) * damage * (1 + 0.5 * applied * ("mlp" in layers))
            records.append(made(method, parts, 8.0, {"cider": 1 - lost}))
        # Broken: beside it, the others have quality left to lose.
        records.append(made(method, dict.fromkeys(PARTS, 2), 2.0, {"cider": 0.0}))
    one_method = [record for record in records if record.names["method"] != "awq"]
    told = "language mlp is counted as quantized in 7 cells"
    compared = "never changes CIDEr (6 comparisons of cells that differ in nothing else)"
    assert defects(stored(tmp_path / "one", *one_method))["not applied"] == [f"{told} and {compared}"]
    assert defects(stored(tmp_path / "two", *records))["not applied"] == [f"{told} of gptq and {compared}"]


# A command measures the quantity that the sentence before it states.


@pytest.mark.parametrize("fields", [{}, {"group_size": 64}])
def test_the_full_precision_cell_that_a_grid_lacks_is_measured_at_full_precision(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    grid = itertools.product((4, 16), repeat=3)
    parts = [
        {part: bits for part, bits in zip(PARTS, widths, strict=True) if bits < 16}
        for widths in grid
        if widths != (16, 16, 16)
    ]
    records = [
        made("gptq", one, 8.0 + place, {"cider": 0.5 + place / 100}, fields=fields) for place, one in enumerate(parts)
    ]
    (told,) = defects(stored(tmp_path, *records))["missing cells"]
    command = told.removeprefix("1 of 8 assignments of gptq was not measured: ")
    assert shlex.split(command) == [
        "python",
        "-m",
        "mmq_sweeps",
        "model=m",
        "task=t",
        "method=none",
        f"store.dir={tmp_path}",
    ]
