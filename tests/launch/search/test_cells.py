"""The cells that a search runs are the cells of the grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.search.cells import Question, Subject, check_task
from launch.search.settings import Settings
from mmq_sweeps.config.sweep import plan_each
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.search import settings as searching
from mmq_sweeps.search.measuring import Items, Measurement
from mmq_sweeps.search.space import Point
from tests.data import layouts
from tests.data.hub_folders import write_own
from tests.launch.multiruns import multirun
from tests.launch.search.asking import question

FEW = ("calibration.samples=16", "task.limit=24", "tracker=none")


def point_of(subject: Subject, **bits: int) -> Point:
    """Return the point whose axes have the widths ``bits``, by the beginnings of their names with ``_`` for dots."""

    def width(name: str) -> int:
        return next(value for key, value in bits.items() if f"{name}.".startswith(f"{key.replace('_', '.')}."))

    return tuple(
        next(place for place, option in enumerate(axis.options) if option.bits == width(axis.name))
        for axis in subject.space.axes
    )


def cell(subject: Subject, point: Point | None, items: Items | None = None) -> Cell:
    _, (found,) = plan_each([subject.config(Measurement(point, items or Items(), "race"))], subject.source)
    return found


def ordinary(*arguments: str) -> Cell:
    """Return the cell of ``python -m mmq_sweeps ARGUMENT ...``."""
    with multirun(*arguments, *FEW) as run:
        return plan_each(run.configs())[1][0]


def test_a_point_is_the_cell_that_a_grid_has_for_it() -> None:
    asked = question("method=gptq", "bits=2,4,16", *FEW)
    expected = ordinary(
        "method=gptq", "component.vision.bits=4", "component.connector.bits=16", "component.language.bits=2"
    )
    full = ordinary("method=none")
    for granularity in ("part", "kind", "group", "unit"):
        subject = Subject.of(replace(asked, settings=replace(asked.settings, granularity=granularity)))
        found = cell(subject, point_of(subject, vision=4, connector=16, language=2))
        assert found.id == expected.id, granularity
        assert cell(subject, None).id == full.id, granularity


def test_kinds_and_methods_may_differ() -> None:
    asked = question("method=gptq,rtn", "bits=3,4", "hydra.sweeper.granularity=kind", *FEW)
    subject = Subject.of(asked)
    axes = {axis.name: axis for axis in subject.space.axes}
    assert {option.label for option in axes["language.mlp"].options} == {"gptq 3", "gptq 4", "rtn 3", "rtn 4"}
    point = tuple(
        [option.label for option in axis.options].index("rtn 3" if axis.part == "vision" else "gptq 4")
        for axis in subject.space.axes
    )
    expected = ordinary("method=gptq", "component.vision.method=rtn", "component.vision.bits=3", "bits=4")
    assert cell(subject, point).id == expected.id


def test_the_race_runs_on_other_items_than_those_that_calibrate_and_evaluate() -> None:
    asked = question("method=gptq", "bits=3,4", "hydra.sweeper.seed=7", *FEW)
    subject = Subject.of(asked)
    point = subject.space.smallest
    raced, final = cell(subject, point, Items("search", 32, 64)), cell(subject, point)
    assert raced.task["split"] == "calibration"
    assert raced.task["sample"] == {"seed": 7, "start": 32, "stop": 64, "apart_from": {"samples": 16, "seed": 0}}
    assert raced.task["limit"] == subject.settings.items == 192
    assert final.task["split"] == "evaluation"
    assert "sample" not in final.task
    # Units that are quantized for the first serve the second.
    assert [raced.part_key(part) for part in raced.parts] == [final.part_key(part) for part in final.parts]


def test_as_many_items_as_usual_are_shared_out_as_usual() -> None:
    usual = searching.Settings("cider")
    found = Subject.of(question("method=rtn", "bits=3,4", *FEW)).settings
    assert found == usual
    finer = Subject.of(question("method=rtn", "bits=3,4", "hydra.sweeper.granularity=unit", *FEW)).settings
    assert finer == usual.finer()
    more = Subject.of(question("method=rtn", "bits=3,4", f"hydra.sweeper.items={2 * usual.items}", *FEW)).settings
    assert (more.first, more.items) == (2 * usual.first, 2 * usual.items)


def test_a_race_on_the_evaluation_split_stays_within_its_items() -> None:
    subject = Subject.of(question("method=rtn", "bits=3,4", "hydra.sweeper.split=evaluation", *FEW))
    assert subject.settings.items == 24
    task = subject.task(Items("search", 0, 8))
    assert (task["split"], task["limit"], task["sample"]["stop"]) == ("evaluation", 24, 8)
    assert "apart_from" not in task["sample"]


def test_a_race_on_the_one_split_of_a_benchmark_is_optimistic() -> None:
    settings = [
        Subject.of(question("method=rtn", "bits=3,4", *FEW, *more)).settings
        for more in ([], ["task.split=calibration"])
    ]
    assert [one.optimistic for one in settings] == [False, True]


def test_items_with_the_picture_of_a_sample_are_not_available(tmp_path: Path) -> None:
    own, asked = write_own(tmp_path / "own", count=5), ("method=rtn", "bits=3,4", "task=ocrbench", "tracker=none")
    lines = (own / "test.jsonl").read_text()
    (own / "test.jsonl").write_text(lines + lines.replace('"id": "test-', '"id": "again-'))
    fields = (f"data.path={own}", "data.answers=answer", "data.kind=null", "split=test", "calibration_split=test")
    subject = Subject.of(
        question(*asked, *(f"task.{one}" for one in fields), "calibration.samples=2", "model=tiny_llava")
    )
    assert subject.available == 6


def test_a_small_split_gives_each_stage_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMQ_DATA", str(tmp_path))
    layouts.write_coco(tmp_path / "coco_caption", "val2017")
    layouts.write_coco(tmp_path / "coco_caption", "train2017", range(1, 49))
    asked = ("method=gptq", "bits=3,4", "task=coco_caption", "calibration.samples=8", "task.limit=4", "tracker=none")
    subject = Subject.of(question(*asked))
    assert subject.available == subject.settings.items == 40
    assert subject.task(Items("search", 0, 4))["limit"] == 40
    with pytest.raises(ConfigError, match=r"2 items are too few to compare candidates on"):
        _ = Subject.of(question(*asked, "calibration.samples=46")).settings


def test_the_id_of_a_search_tells_what_its_course_depends_on() -> None:
    ids = [
        question("method=rtn", "bits=3,4", *FEW, *more).id
        for more in ([], ["store.dir=elsewhere"], ["hydra.sweeper.seed=1"], ["component.vision.bits=2,3"], ["task.limit=25"])
    ]  # fmt: skip
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4


def test_a_task_that_cannot_draw_items_is_told() -> None:
    task: dict[str, Any] = {"_target_": "mmq_sweeps.methods.rtn.RoundToNearest", "name": "mine"}
    with pytest.raises(ConfigError, match=r"task=mine: its class has no field sample"):
        check_task(task, Settings("max_bpw", (3.0,)))


def test_an_unknown_shape_is_told_before_any_work() -> None:
    asked = question("method=rtn", "bits=3,4", *FEW)
    model = {**asked.base["model"], "name": "mine", "checkpoint": "somebody/else"}
    with pytest.raises(ConfigError, match=r"mine: its shape is not known without"):
        Subject.of(Question({**asked.base, "model": model}, asked.settings, asked.options, asked.source, asked.metric))
