"""The weights that a cell is measured with are those that a loader computes from its codes and scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.execution.session import Session
from mmq_sweeps.models.loading import load_model
from mmq_sweeps.quantization.targets import find_parts
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.store import Store
from tests.conftest import SMALL
from tests.methods.test_exact_scales import loaded as loaded_weight

Composed = Callable[..., DictConfig]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("device_map", [None, "disk"])
def test_a_cell_runs_with_the_weights_that_a_loader_computes(
    composed: Composed, tmp_path: Path, dtype: str, device_map: str | None
) -> None:
    overrides = (*SMALL, f"model.dtype={dtype}", f"model.device_map={device_map or 'null'}", "method=rtn", "bits=3")
    sweep = plan([composed(*overrides, "component=connector_language", "component.language.bits=8")])
    cell = sweep.cells[-1]
    config = sweep.configs[cell.id]
    with quiet_libraries():
        loaded = load_model(config["model"])
    parts = find_parts(loaded.model, config["model"])
    session = Session(loaded, parts, build("task", config["task"]), 8, Store.open(tmp_path / "store"))
    quantized = session.quantize(cell, Progress(1))
    for part in ("connector", "language"):
        own = {name: quantized.weights[name] for unit in parts[part].units for name in unit.linears}
        session.weights.put(part, "key", own)
        for name, weight in own.items():
            assert weight.format.dtype == dtype
            placed = loaded.weight(name)
            # BLIP-2's Q-Former stays in single precision in a model in float16; its scales are halves all the same.
            assert placed.dtype in (getattr(torch, dtype), torch.float32)
            assert torch.equal(placed, loaded_weight(weight, placed.dtype)), name
    session.weights.restore()
