from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from mmq_sweeps.affine import Format
from mmq_sweeps.build import build
from mmq_sweeps.cell import Cell
from mmq_sweeps.errors import TargetError
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.progress import Progress
from mmq_sweeps.quantize import KIND, compute, load
from mmq_sweeps.run import Bench
from mmq_sweeps.store import Store
from mmq_sweeps.sweep import plan
from mmq_sweeps.targets import Part
from tests.conftest import SMALL

Composed = Callable[..., DictConfig]


@pytest.fixture
def bench(composed: Composed, loaded: LoadedModel, parts: dict[str, Part], tmp_path: Path) -> Bench:
    task = plan([composed(*SMALL)]).configs.popitem()[1]["task"]
    return Bench(loaded, parts, build("task", task), 8, Store.open(tmp_path / "store"))


def cell(composed: Composed, *overrides: str) -> Cell:
    return plan([composed(*SMALL, *overrides)]).cells[-1]


def weights(bench: Bench, *cells: Cell) -> list[dict[str, torch.Tensor]]:
    """Quantize ``cells`` together, and what each then reads from the store."""
    wanted = [bench.requests(one) for one in cells]
    assert not bench.compute([request for requests in wanted for request in requests], Progress(1))
    found = []
    for requests in wanted:
        one, missing = load(requests, bench.loaded, bench.store)
        assert not missing
        found.append({name: quantized.dequantize() for name, quantized in one.weights.items()})
    return found


@pytest.mark.parametrize("method", ["gptq", "awq", "rtn", "uniform"])
def test_sharing_changes_no_weight(bench: Bench, composed: Composed, tmp_path: Path, method: str) -> None:
    cells = [cell(composed, f"method={method}", f"bits={bits}") for bits in (2, 4)]
    together = weights(bench, *cells)
    for index, one in enumerate(cells):
        alone = weights(replace(bench, store=Store.open(tmp_path / f"alone{index}")), one)[0]
        assert alone.keys() == together[index].keys()
        assert all(torch.equal(alone[name], together[index][name]) for name in alone)


def test_cells_share_units_through_the_store(bench: Bench, composed: Composed) -> None:
    whole = cell(composed, "method=gptq", "bits=3")
    weights(bench, whole)
    piece = cell(composed, "method=gptq", "bits=3", "component=vision", "component.vision.blocks=[end]")
    found, missing = load(bench.requests(piece), bench.loaded, bench.store)
    assert found.weights
    assert not missing
    assert load(bench.requests(cell(composed, "method=gptq", "bits=4")), bench.loaded, bench.store)[1]


def test_a_narrowed_cell_quantizes_nothing_else(bench: Bench, composed: Composed) -> None:
    piece = cell(composed, "bits=2", "component=language", "component.language.layers=[mlp]")
    names = weights(bench, piece)[0]
    assert names
    assert all(".fc" in name and name.startswith(bench.parts["language"].module) for name in names)


def test_gptq_and_awq_beat_rounding_on_the_layers_of_the_model(bench: Bench, composed: Composed) -> None:
    from mmq_sweeps.calibrate import block_statistics, capture

    methods = ("rtn", "gptq", "awq")
    quantized = dict(
        zip(methods, weights(bench, *(cell(composed, f"method={m}", "bits=3") for m in methods)), strict=True)
    )
    error = dict.fromkeys(methods, 0.0)
    for part in bench.parts.values():
        batches = bench.task.calibration_batches(bench.loaded, {"samples": 16, "batch_size": 8, "seed": 0})
        calls = capture(bench.loaded, [part], batches)[part.name]
        for _, found in block_statistics(bench.loaded.model, part, calls, lambda index: True):
            for shared in found:
                for name in shared.linears:
                    original = bench.loaded.model.get_submodule(name).weight
                    for method in methods:
                        change = original - quantized[method][name]
                        error[method] += float(((change @ shared.stats.gram) * change).sum())
    assert error["gptq"] < error["awq"] < error["rtn"]


def test_a_corrupt_artifact_is_computed_again(bench: Bench, composed: Composed) -> None:
    one = cell(composed, "bits=3", "component=connector")
    before = weights(bench, one)[0]
    request = bench.requests(one)[0]
    path = bench.store.root / "artifacts" / KIND / f"{request.key}.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    _, missing = load(bench.requests(one), bench.loaded, bench.store)
    assert [lost.key for lost in missing] == [request.key]
    after = weights(bench, one)[0]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_linear_left_as_it_was_is_an_error_with_its_name(bench: Bench, composed: Composed) -> None:
    one = cell(composed, "bits=2", "component=vision", "component.vision.blocks=[end]")
    name, shape = next(iter(bench.requests(one)[0].unit.linears.items()))
    weight = bench.loaded.model.get_submodule(name).weight
    kept = weight.detach().clone()
    try:
        # Four values, evenly spaced, in every row: two bits hold them exactly.
        with torch.no_grad():
            weight.copy_((torch.arange(shape[1]) % 4 / 4).expand(shape))
        bench.compute(bench.requests(one), Progress(1))
        with pytest.raises(TargetError, match=f"left 1 linears as they were in every element.*{name}"):
            load(bench.requests(one), bench.loaded, bench.store)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_a_failing_solver_fails_its_own_requests_only(bench: Bench, composed: Composed) -> None:
    class Broken:
        needs_statistics = False

        def format(self, bits: int) -> Format:
            return Format(bits)

        def quantize(self, weights: object, stats: object, format: object) -> None:  # noqa: ARG002
            raise ValueError("no solution")

    good = bench.requests(cell(composed, "bits=3", "component=connector"))
    bad = replace(bench.requests(cell(composed, "bits=4", "component=connector"))[0], method=Broken())
    failed = compute([*good, bad], bench.loaded, bench.parts, bench.task, 8, bench.store)
    assert list(failed) == [bad.key]
    assert "no solution" in str(failed[bad.key])
    assert not load(good, bench.loaded, bench.store)[1]
