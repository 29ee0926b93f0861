"""A sweep in this process: the models it loads, the weights it restores, the lines it shows while it runs."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from launch.start import run_sweep
from mmq_sweeps.config.sweep import Sweep, plan
from mmq_sweeps.errors import StoreError
from mmq_sweeps.execution import session
from mmq_sweeps.execution.session import Session
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.conftest import SMALL
from tests.terminal import on_a_terminal

Composed = Callable[..., DictConfig]


def configs(composed: Composed, tmp_path: Path, *axes: list[str]) -> list[DictConfig]:
    return [composed(*SMALL, f"store.dir={tmp_path / 'runs'}", *one) for one in axes]


def test_the_model_is_loaded_once_and_restored(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads: list[LoadedModel] = []
    original = session.load_model

    def counted(config: dict) -> LoadedModel:
        loads.append(original(config))
        return loads[-1]

    monkeypatch.setattr(session, "load_model", counted)
    axes = [[f"method={method}", "bits=2", "task.limit=4"] for method in ("rtn", "gptq")]
    assert run_sweep(configs(composed, tmp_path, *axes)) == 0
    assert len(loads) == 1
    fresh = original(loads[0].config)
    for (name, weight), (_, expected) in zip(
        loads[0].model.named_parameters(), fresh.model.named_parameters(), strict=True
    ):
        assert torch.equal(weight, expected), name
    assert run_sweep(configs(composed, tmp_path, *axes)) == 0
    assert len(loads) == 1, "a second run loads nothing"
    tasks = [["method=rtn", f"task.limit={limit}"] for limit in (2, 3)]
    assert run_sweep(configs(composed, tmp_path, *tasks)) == 0
    assert len(loads) == 2, "two tasks share a model"
    assert "CIDEr" in capsys.readouterr().out


def test_weights_are_restored_when_evaluating_fails(loaded: LoadedModel) -> None:
    name = next(name for name, module in loaded.model.named_modules() if isinstance(module, torch.nn.Linear))
    before = loaded.linear(name).weight.detach().clone()

    def failing_evaluation() -> None:
        with loaded.weights_replaced({name: torch.zeros_like(before)}):
            assert not loaded.linear(name).weight.any()
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        failing_evaluation()
    assert torch.equal(loaded.linear(name).weight, before)


def test_a_record_says_what_it_depends_on(composed: Composed, tmp_path: Path) -> None:
    run_sweep(configs(composed, tmp_path, ["method=gptq", "bits=3", "task.limit=8"]))
    store = Store.open(tmp_path / "runs")
    baseline, record = store.records()
    assert baseline.baseline
    assert not record.baseline
    assert record.cell["parts"]["vision"]["bits"] == 3
    assert record.cell["calibration"] == {"samples": 16, "seed": 0}
    assert set(record.seconds) == {"calibrate", "quantize", "evaluate", "score"}
    assert record.peak_memory_bytes["process"] > 10**7
    assert record.versions["torch"] == torch.__version__
    assert record.hardware["cpus"] >= 1
    assert record.metrics["cider"]["count"] == 8
    low, high = record.metrics["cider"]["interval"]
    assert low <= record.metrics["cider"]["value"] <= high
    items = store.items(record.id)
    assert len(items) == 8
    mean = sum(item["scores"]["cider"] for item in items) / len(items)
    assert mean == pytest.approx(record.metrics["cider"]["value"], abs=1e-12)


def test_other_metrics_and_longer_generation_are_chosen_by_the_task(composed: Composed, tmp_path: Path) -> None:
    overrides = ["method=none", "task.metrics=[bleu_4,rouge_l,cider]", "model.generation.caption.num_beams=2"]
    run_sweep(configs(composed, tmp_path, overrides))
    (record,) = Store.open(tmp_path / "runs").records()
    assert set(record.metrics) == {"bleu_4", "rouge_l", "cider"}


def test_a_batch_size_changes_no_caption(composed: Composed, tmp_path: Path) -> None:
    predictions = []
    for size in (1, 5, 12):
        where = tmp_path / str(size)
        run_sweep(configs(composed, where, ["method=none", "task.limit=12", f"task.batch_size={size}"]))
        store = Store.open(where / "runs")
        predictions.append({item["id"]: item["prediction"] for item in store.items(store.records()[0].id)})
    assert predictions[0] == predictions[1] == predictions[2]


def test_a_terminal_gets_bars_and_colours(tmp_path: Path) -> None:
    """The command on a real terminal: bars over cells and stages, colours in the table."""
    text = on_a_terminal("mmq_sweeps", ["method=rtn", "component=vision", "bits=3", *SMALL, "task.limit=120"], tmp_path)
    for expected in ("cells · full precision", "cells · rtn vision 3", "evaluate", "━", "\x1b["):
        assert expected in text, expected
    for unwanted in ("Warning", "warning", "Loading weights", "Traceback"):
        assert unwanted not in text, unwanted


def test_a_result_that_cannot_be_recorded_is_told(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Store, record: Record, items: object = None) -> Record:  # noqa: ARG001
        raise StoreError(errno.ENOSPC, f"cannot write {record.id}: No space left on device")

    monkeypatch.setattr(Store, "save", full)
    assert run_sweep(configs(composed, tmp_path, ["method=rtn", "bits=3", "task.limit=4"])) == 1
    told = capsys.readouterr().err
    assert "measured but not recorded" in told
    assert "cider" in told
    assert "No space left on device; 2 cells are missing" in told


def test_shared_work_that_stops_is_tried_by_each_cell_alone(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = Session.compute, []

    def once_broken(self: Session, missing: list, progress: Progress) -> dict:
        calls.append(len(missing))
        if len(calls) == 1:
            raise MemoryError("too much at once")
        return original(self, missing, progress)

    monkeypatch.setattr(Session, "compute", once_broken)
    assert (
        run_sweep(configs(composed, tmp_path, *([f"bits={bits}", "method=rtn", "task.limit=4"] for bits in (3, 4))))
        == 0
    )
    assert (
        "shared quantization stopped (MemoryError: too much at once); each cell quantizes on its own"
        in capsys.readouterr().err
    )
    # Which of the parts came first and broke is chance; the two cells then share it out between them.
    assert calls[0] == sum(calls[-2:])


def test_a_sweep_comes_back_from_json_as_it_was(composed: Composed) -> None:
    sweep = plan([composed("method=gptq", f"bits={bits}") for bits in (2, 3)] + [composed("method=rtn")])
    told = json.loads(json.dumps(sweep.to_json()))
    assert Sweep.from_json(told) == sweep
    assert len(json.dumps(told)) < len(json.dumps(sweep.configs))
