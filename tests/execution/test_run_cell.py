"""A cell that does not fit into memory fails, says how much it needed, and leaves the model as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from mmq_sweeps import memory
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.execution.failure_policy import record_cell
from mmq_sweeps.execution.session import Sessions
from mmq_sweeps.execution.weight_swap import Dequantized
from mmq_sweeps.methods.formats import Format, round_nearest
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.store import Store
from tests.commands import run_forked
from tests.conftest import SMALL, command_environment

HUGE = 1 << 50


class Greedy:
    """A task that allocates a petabyte instead of predicting."""

    batch_size = 24

    def predict(self, *_: Any) -> dict[str, str]:
        return {"1": str(torch.empty(HUGE, dtype=torch.uint8))}


def test_memory_that_is_refused_is_recorded_and_the_next_cell_runs(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    sweep = plan([composed(*SMALL, "method=rtn", "bits=3", f"store.dir={tmp_path}")])
    store = Store.open(str(tmp_path))
    with quiet_libraries(), Progress(1) as progress:
        session = Sessions(sweep, store).open(sweep.cells[-1])
        weights = {name: parameter.clone() for name, parameter in session.loaded.model.named_parameters()}
        task, session.task = session.task, Greedy()  # type: ignore[assignment]
        record, items = record_cell(sweep.cells[-1], session, progress)
        assert (record.status, items) == ("failed", [])
        assert record.error["class"] == "OutOfMemory"
        assert record.error["asked_bytes"] == HUGE
        assert "evaluating asked for 1125899.91 GB more memory than there is" in record.error["message"]
        # It was tried with half the batch as well.
        assert "choose a smaller task.batch_size (now 12)" in record.error["message"]
        assert record.attempts["count"] == 2
        assert "(now 24)" in record.attempts["reasons"][0]
        assert store.record(record.id) == record
        for name, parameter in session.loaded.model.named_parameters():
            assert torch.equal(parameter, weights[name])
        session.task = task
        assert record_cell(sweep.cells[-1], session, progress)[0].done


def test_a_limit_on_the_process_s_memory(tmp_path: Path) -> None:
    """Under a real limit, set when the model is loaded and the cell begins, neither 300 images fit nor half of them."""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads /proc, which this system does not have; run the tests on Linux")
    arguments = ["method=none", "tracker=none", "task.limit=300", "task.batch_size=300"]
    done = run_forked("tests.execution.little_memory", arguments, tmp_path, command_environment())
    assert done.returncode == 1, done.stderr
    assert "failed: none: OutOfMemory: evaluating asked for" in done.stderr
    assert "choose a smaller task.batch_size (now 150)" in done.stderr
    record = json.loads(next((tmp_path / "runs" / "cells").glob("*/record.json")).read_text())
    assert record["error"]["class"] == "OutOfMemory"
    assert record["peak_memory_bytes"]["process"] > 0


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 15 GiB"),
            2 << 30,
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes. Error code 12"),
            4000,
        ),
        (MemoryError("Unable to allocate 1.50 MiB for an array with shape (3,)"), 3 << 19),
        (RuntimeError("CUDA error: out of memory"), None),
        (MemoryError(), None),
        (OSError(12, "Cannot allocate memory"), None),
    ],
)
def test_whoever_refuses_it(error: BaseException, asked: int | None) -> None:
    assert memory.ran_out_of_memory(error)
    assert memory.asked_bytes(error) == asked


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(2, "No such file"), ValueError("memory")])
def test_other_errors_are_not_memory(error: BaseException) -> None:
    assert not memory.ran_out_of_memory(error)


def test_a_model_that_cannot_be_loaded_for_memory_is_told_in_one_line(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = plan([composed(*SMALL, "method=none", f"store.dir={tmp_path}")])

    def refused(_config: dict[str, Any]) -> None:
        torch.empty(HUGE, dtype=torch.uint8)

    monkeypatch.setattr("mmq_sweeps.execution.session.load_model", refused)
    with pytest.raises(
        ValueError, match=r"model.checkpoint=embedded/tiny_blip2: loading it in float32 asked for 1.*disk"
    ):
        Sessions(sweep, Store.open(str(tmp_path))).open(sweep.cells[0])


def test_weights_are_dequantized_one_at_a_time() -> None:
    quantized = {name: round_nearest(torch.randn(4, 8), Format(3)) for name in ("a", "b")}
    weights = Dequantized(quantized)
    assert list(weights) == ["a", "b"]
    assert len(weights) == 2
    assert torch.equal(weights["b"], quantized["b"].dequantize())
