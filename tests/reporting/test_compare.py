from __future__ import annotations

from dataclasses import replace

import pytest

from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.reporting.compare import conflict, distinct_titles, families_of, variant, with_variants
from mmq_sweeps.store.record import Record
from tests.launch import cells as made

CELL = Record(id="c", status="done", cell={}, names={}, metrics={}, size={}, seconds={})


def told(*values: dict[str, float | None]) -> str | None:
    records = [
        replace(CELL, metrics={name: {"value": figure} for name, figure in metrics.items()}) for metrics in values
    ]
    return conflict("c", records, ["a", "b"])


@pytest.mark.parametrize(
    ("values", "how"),
    [
        (({"cider": 1.0, "bleu": 0.5}, {"cider": 1.25, "bleu": 0.6}), "cider differs by 0.25"),
        (({"cider": None}, {"cider": 1.0}), "cider has a value in some and none in others"),
        (({"cider": 1.0}, {"cider": float("nan")}, {"cider": 1.5}), "cider has a value in some and none in others"),
        (({"cider": 1.0}, {}), "cider has a value in some and none in others"),
        # No difference of figures is larger than that of a figure and none.
        (({"cider": 1.0, "bleu": None}, {"cider": 9.0, "bleu": 0.1}), "bleu has a value in some and none in others"),
    ],
)
def test_a_conflict_names_the_metric_that_differs_most_and_how(
    values: tuple[dict[str, float | None], ...], how: str
) -> None:
    sentence = f"cell c was measured {len(values)} times with different results ({how}); the newest is shown: a, b"
    assert told(*values) == sentence


def test_values_that_all_lack_are_no_conflict() -> None:
    assert told({"cider": None}, {"cider": float("nan")}, {}) is None


def test_methods_of_single_parts_count_for_a_variant() -> None:
    def cell(**fields: object) -> dict:
        rule = {"bits": 4, "method": {"_target_": "gptq", **fields}}
        return {"method": {"_target_": "rtn", "group_size": 64}, "parts": {"vision": {"bits": 4}, "language": rule}}

    told = [variant(cell(damping=damping)) for damping in (0.01, 0.05)]
    assert told[0] == {"method.group_size": 64, "gptq.damping": 0.01, "calibration": {}}
    name = "rtn (vision), gptq (language)"
    assert with_variants([(name, one) for one in told]) == [f"{name} gptq.damping=0.01", f"{name} gptq.damping=0.05"]


def test_two_methods_of_one_name_are_both_told() -> None:
    rules = [
        {"bits": 4, "units": [f"{place}.mlp"], "method": {"_target_": "gptq", "damping": place}} for place in (1, 2)
    ]
    told = variant({"method": None, "parts": {"language": {"rules": rules}}})
    assert told == {"method": {}, "gptq.damping": 1, "gptq#2.damping": 2, "calibration": {}}


def grouped(one: Cell, group_size: int, samples: int = 4) -> Cell:
    return replace(one, method={**(one.method or {}), "group_size": group_size}, calibration={"samples": samples})


def test_titles_of_a_sweep_s_cells_differ_by_what_the_cells_differ_in() -> None:
    one, other = made.cell(3, 3, 3, method="gptq"), made.cell(2, 3, 3, method="gptq")
    cells = [
        made.cell(16, 16, 16),
        made.cell(16, 16, 16, task="questions"),
        grouped(one, 64),
        grouped(one, 128),
        grouped(one, 128, samples=8),
        other,
        replace(other, task={**other.task, "limit": 8}),
    ]
    assert list(distinct_titles(cells).values()) == [
        "full precision, captions",
        "full precision, questions",
        "gptq vision 3 connector 3 language 3, method.group_size=64, calibration.samples=4",
        "gptq vision 3 connector 3 language 3, method.group_size=128, calibration.samples=4",
        "gptq vision 3 connector 3 language 3, method.group_size=128, calibration.samples=8",
        "gptq vision 2 connector 3 language 3",
        "gptq vision 2 connector 3 language 3, task.limit=8",
    ]


def test_titles_that_differ_anyway_stay_as_they_are() -> None:
    cells = made.grid(2, 3)
    assert distinct_titles(cells) == {cell.id: cell.title() for cell in cells}


def cells_of_checkpoints(**models: dict[str, object]) -> dict[str, dict[str, object]]:
    return {name: {"model": {"class_name": "A", "dtype": "float32", **own}, "task": {}} for name, own in models.items()}


def test_a_checkpoint_quantized_elsewhere_is_in_the_family_of_its_full_precision() -> None:
    cells = cells_of_checkpoints(
        full={"checkpoint": "a", "files": "1"},
        gptq={"checkpoint": "b", "files": "2", "quantized": "gptq"},
        awq={"checkpoint": "c", "revision": "sha256:0", "quantized": "awq"},
        half={"checkpoint": "d", "dtype": "float16", "quantized": "awq"},
    )
    found = families_of(cells)
    assert found["gptq"] == found["awq"] == found["full"]
    assert found["half"] != found["full"]


def test_beside_two_full_precision_models_it_is_a_family_of_its_own() -> None:
    """The record does not say which of the two models the cell was made from."""
    cells = cells_of_checkpoints(
        one={"checkpoint": "a"}, two={"checkpoint": "b"}, gptq={"checkpoint": "c", "quantized": "gptq"}
    )
    assert len(set(families_of(cells).values())) == 3


def test_two_checkpoints_quantized_elsewhere_differ_in_their_folders() -> None:
    cells = cells_of_checkpoints(
        one={"checkpoint": "a", "quantized": "gptq"}, two={"checkpoint": "b", "quantized": "awq"}
    )
    assert [variant(cell) for cell in cells.values()] == [{"model.checkpoint": "a"}, {"model.checkpoint": "b"}]
