"""A weight that quantization cannot change, or stores in more bits, is named, and the cell goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.execution.failure_policy import record_cell
from mmq_sweeps.execution.session import Session
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.targets import Part
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.conftest import SMALL

Composed = Callable[..., DictConfig]
TINY = (*SMALL, "task.limit=4", "calibration.samples=8")
MLP = ("component=language", "component.language.layers=[mlp]", "component.language.blocks=[front]", "bits=3")


@pytest.fixture
def measured(
    composed: Composed,
    loaded: LoadedModel,
    parts: dict[str, Part],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., tuple[Record, list[dict[str, Any]], list[str]]]:
    """Return ``measured("method=rtn")``: a cell's record, its items and the logged lines, always computed from the start."""
    count = 0

    def run(*overrides: str) -> tuple[Record, list[dict[str, Any]], list[str]]:
        nonlocal count
        count += 1
        sweep = plan([composed(*TINY, *overrides)])
        cell = sweep.cells[-1]
        task = build("task", sweep.configs[cell.id]["task"])
        session = Session(loaded, parts, task, 8, Store.open(tmp_path / f"store{count}"))
        caplog.clear()
        record, items = record_cell(cell, session, Progress(1))
        return record, items, caplog.messages

    return run


@contextmanager
def replaced(loaded: LoadedModel, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace parameters of the model, by name, until the end."""
    parameters = dict(loaded.model.named_parameters())
    kept = {name: parameters[name].detach().clone() for name in values}
    try:
        with torch.no_grad():
            for name, value in values.items():
                parameters[name].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                parameters[name].copy_(value)


def linears(parts: Mapping[str, Part]) -> list[str]:
    return [
        name
        for unit in parts["language"].units
        if unit.kind == "mlp" and unit.group == "front"
        for name in unit.linears
    ]


def on_three_bits(weight: Tensor) -> Tensor:
    """Return a tensor like ``weight`` that repeats eight evenly spaced values in every row."""
    return (torch.arange(weight.shape[1]) % 8 - 3).expand(weight.shape) / 64


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "hqq", "coordinate_descent", "uniform"])
def test_a_linear_of_zeros_is_named_and_the_cell_goes_on(
    measured: Any, loaded: LoadedModel, parts: dict[str, Part], method: str
) -> None:
    name = linears(parts)[0]
    with replaced(loaded, {f"{name}.weight": torch.zeros_like(loaded.weight(name))}):
        record, _, said = measured(f"method={method}", *MLP)
    assert record.done, record.error
    assert record.notes["unchanged"] == [name]
    (line,) = [line for line in said if "already" in line]
    assert f"1 of {len(linears(parts))} linears lie on their grid already and stay as they are: {name}" in line
    assert "full precision" not in line


def test_a_cell_of_weights_that_all_lie_on_their_grid_says_that_it_measures_full_precision(
    measured: Any, loaded: LoadedModel, parts: dict[str, Part]
) -> None:
    on_grid = {f"{name}.weight": on_three_bits(loaded.weight(name)) for name in linears(parts)}
    with replaced(loaded, on_grid):
        record, items, said = measured("method=rtn", *MLP)
        baseline, plain, _ = measured("method=none")
    assert record.done
    assert sorted(record.notes["unchanged"]) == sorted(linears(parts))
    assert [line for line in said if line.startswith("this cell measures full precision: ")]
    assert [item["prediction"] for item in items] == [item["prediction"] for item in plain]
    assert "unchanged" not in baseline.notes


def test_awq_leaves_weights_that_were_trained_on_its_grid(
    measured: Any, loaded: LoadedModel, parts: dict[str, Part]
) -> None:
    on_grid = {f"{name}.weight": on_three_bits(loaded.weight(name)) for name in linears(parts)}
    with replaced(loaded, on_grid):
        record, _, _ = measured("method=awq", *MLP)
    assert record.done, record.error
    assert record.notes["unchanged"]


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "hqq", "coordinate_descent", "uniform"])
def test_an_mlp_rescaled_without_changing_its_function_gives_the_same_answers(
    measured: Any, loaded: LoadedModel, parts: dict[str, Part], method: str
) -> None:
    first, second = linears(parts)[:2]
    names = {f"{first}.weight": -12, f"{first}.bias": -12, f"{second}.weight": 12}
    parameters = dict(loaded.model.named_parameters())
    scaled = {name: parameters[name].detach() * 2.0**exponent for name, exponent in names.items()}
    before = measured(f"method={method}", *MLP)
    with replaced(loaded, scaled):
        after = measured(f"method={method}", *MLP)
    assert before[0].done, before[0].error
    assert before[1] == after[1]
    assert before[0].metrics == after[0].metrics


def test_a_part_that_takes_more_than_full_precision_is_named(measured: Any) -> None:
    record, _, said = measured("method=rtn", "method.group_size=1", *MLP[:1], "bits=8")
    size = record.size["parts"]["language"]["bpw_exact"]
    assert size > 16
    (line,) = [line for line in said if "full precision" in line]
    assert f"language takes {size:.1f} bits per weight as stored, more than the 16 of full precision" in line
    _, _, said = measured("method=rtn", *MLP[:1], "bits=8")
    assert not [line for line in said if "full precision" in line]
