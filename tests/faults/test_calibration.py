"""Statistics must not mix in inputs of another block, or of a tensor that was changed after it was captured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.calibration import (
    BlockRunner,
    SharedStats,
    block_runner,
    block_statistics,
    calls,
    capture,
    recording,
)
from mmq_sweeps.quantization.quantize import UnitSolver, quantize_units
from mmq_sweeps.quantization.requests import Request
from mmq_sweeps.quantization.stored_units import read_unit
from mmq_sweeps.quantization.targets import Part, find_parts
from mmq_sweeps.store.store import Store

WIDTH = 8
Batch = Mapping[str, Any]


class Tower(nn.Module):
    """Three blocks; ``between`` changes the input of the last, ``spoil`` overwrites every input after its block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH)) for _ in range(3)])

    def forward(self, x: Tensor, between: bool = False, spoil: bool = False, use_cache: bool = False) -> Tensor:
        assert not use_cache
        for index, block in enumerate(self.blocks):
            if index == 2 and between:
                x = x.flip(-1) + 1
            before, x = x, block(x)
            if spoil:
                before.fill_(7.0)
        return x


class InPlace(nn.Sequential):
    """A block that adds to its input in place, as some of transformers do."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        scale += 1
        x += scale
        return super().forward(x)


class Changing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([InPlace(nn.Linear(WIDTH, WIDTH)) for _ in range(3)])

    def forward(self, x: Tensor, scale: Tensor, use_cache: bool = False) -> Tensor:
        assert not use_cache
        x, scale = x.clone(), scale.clone()
        for block in self.blocks:
            x = block(x, scale)
        return x


def toy(tower: nn.Module) -> tuple[LoadedModel, Part]:
    model = nn.ModuleDict({"tower": tower})
    model.forward = tower.forward
    where = {"module": ["tower"], "blocks": ["blocks"], "attention": [], "mlp": ["0"], "masked": False}
    return LoadedModel(model, None, {}), find_parts(model, {"parts": {"tower": where}})["tower"]


def copies_of(batches: Sequence[Batch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield {name: value.clone() if isinstance(value, Tensor) else value for name, value in batch.items()}


def grams_of(loaded: LoadedModel, part: Part, batches: Sequence[Batch]) -> list[Tensor]:
    """Return the Gram matrix of each block's linear in plain runs of the model."""
    sums = [torch.zeros(WIDTH, WIDTH) for _ in part.blocks]
    count = 0

    def add(place: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sums[place].add_(inputs[0].T @ inputs[0])

        return hook

    handles = [
        loaded.model.get_submodule(f"{path}.0").register_forward_pre_hook(add(place))
        for place, path in enumerate(part.blocks)
    ]
    with torch.no_grad():
        for batch in copies_of(batches):
            count += batch["x"].numel() // WIDTH
            loaded.model(**batch)
    for handle in handles:
        handle.remove()
    return [one / count for one in sums]


@pytest.mark.parametrize("between", [(True, False), (False, True)])
def test_a_chain_has_its_own_input_in_passes_with_and_without_a_step_between_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: tuple[bool, bool]
) -> None:
    loaded, part = toy(Tower())
    batches = [{"x": torch.randn(20, WIDTH), "between": step} for step in between]
    method = GPTQ(group_size=WIDTH, sequential=True)
    alone = [
        Request(unit, method, method.format(2), unit.name, {"samples": 2}, calibration_pass="one")
        for unit in part.units
    ]
    requests = [replace(request, chain={link.key: link for link in alone}) for request in alone]
    found: list[Tensor] = []
    solve = UnitSolver.solve

    def spy(solver: UnitSolver, requests: Sequence[Request], stats: Sequence[SharedStats], seconds: float) -> None:
        found.append(stats[0].stats.gram.clone())
        solve(solver, requests, stats, seconds)

    monkeypatch.setattr(UnitSolver, "solve", spy)
    store = Store.open(tmp_path / "store")
    failed = quantize_units(requests, loaded, {"tower": part}, lambda _: copies_of(batches), store)
    assert not failed
    # The input of a block depends only on the quantized blocks before it, so all blocks may be in place.
    with torch.no_grad():
        for request in requests:
            stored = read_unit(request, store)
            assert stored is not None
            for name, quantized in stored.weights.items():
                loaded.model.get_submodule(name).weight.copy_(quantized.dequantize())
    for gram, expected in zip(found, grams_of(loaded, part, batches), strict=True):
        torch.testing.assert_close(gram, expected, rtol=1e-4, atol=1e-5)


def test_a_run_does_not_start_at_a_block_whose_input_some_passes_lack() -> None:
    loaded, part = toy(Tower())
    batches = [{"x": torch.randn(4, WIDTH), "between": step} for step in (True, False)]
    with pytest.raises(RuntimeError, match=r"1 of 2 passes lack the input of tower\.blocks\.2.*start=2"):
        BlockRunner(loaded, part, capture(loaded, [part], copies_of(batches))["tower"], 2)
    passes = capture(loaded, [part], copies_of(batches), start=2)["tower"]
    assert [runner.shape for runner in BlockRunner(loaded, part, passes, 2).hidden] == [(4, WIDTH)] * 2


@pytest.fixture(params=[False, True], ids=["here", "offloaded"])
def offloaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (block_runner, recording):
        monkeypatch.setattr(module, "offloaded", lambda _loaded: request.param)
    monkeypatch.setattr(LoadedModel, "device", property(lambda _loaded: torch.device("cpu")))


@pytest.mark.usefixtures("offloaded")
def test_a_captured_input_keeps_its_values_when_the_model_changes_it_in_place() -> None:
    loaded, part = toy(Tower())
    batches = [{"x": torch.randn(6, WIDTH), "between": True, "spoil": True} for _ in range(2)]
    expected = grams_of(loaded, part, batches)
    passes = capture(loaded, [part], copies_of(batches))["tower"]
    for block, (shared,) in block_statistics(loaded, part, passes, [f"{path}.0" for path in part.blocks]):
        torch.testing.assert_close(shared.stats.gram, expected[block], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("offloaded")
def test_a_block_that_changes_its_arguments_in_place_sees_the_same_ones_in_every_run() -> None:
    loaded, part = toy(Changing())
    batches = [{"x": torch.randn(6, WIDTH), "scale": torch.ones(WIDTH)} for _ in range(2)]
    expected = grams_of(loaded, part, batches)
    runner = BlockRunner(loaded, part, capture(loaded, [part], copies_of(batches))["tower"])
    for path, gram in zip(part.blocks, expected, strict=True):
        for run in (runner.statistics, runner.statistics, runner.advance):
            torch.testing.assert_close(run([f"{path}.0"])[0].stats.gram, gram, rtol=1e-4, atol=1e-5)


def test_a_copy_is_shared_until_its_original_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    copied = calls._copied
    monkeypatch.setattr(calls, "_copied", lambda tensor, device: made.append(tensor) or copied(tensor, device))
    x = torch.zeros(2, 3)
    copies = calls.Copies()
    first, (again, other) = copies.of(x), copies.of((x, torch.ones(1)))
    assert first is again
    assert len(made) == 2
    assert other.tolist() == [1.0]
    x += 1
    assert copies.of(x).tolist() == [[1.0] * 3] * 2
    assert first.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(2, 1, 4, 4).expand(2, 8, 4, 4), torch.randn(3, 5).T, torch.randn(3, 9)[:, 2:5], torch.tensor(1.0)],
)
def test_a_copy_has_the_strides_of_its_original_and_no_more_memory(tensor: Tensor) -> None:
    copy = calls.Copies().of(tensor)
    assert torch.equal(copy, tensor)
    assert copy.stride() == tensor.stride()
    assert copy.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
    assert copy.untyped_storage().nbytes() <= tensor.untyped_storage().nbytes()
