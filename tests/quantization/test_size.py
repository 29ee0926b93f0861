from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig
from torch import nn

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.execution.session import Session
from mmq_sweeps.methods.formats import Format, round_nearest
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.size import measure
from mmq_sweeps.quantization.stored_units import DENSE, load
from mmq_sweeps.quantization.targets import Part
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.store import Store
from tests.conftest import SMALL


def quantize_all(loaded: LoadedModel, parts: dict[str, Part], bits: int) -> dict:
    return {
        name: round_nearest(loaded.model.get_submodule(name).weight, Format(bits))
        for part in parts.values()
        for unit in part.units
        for name in unit.linears
    }


def test_full_precision_is_sixteen_bits(loaded: LoadedModel, parts: dict[str, Part]) -> None:
    size = measure(loaded.model, parts.values(), {})
    assert {one["bpw_paper"] for one in (size["total"], *size["parts"].values())} == {16.0}
    assert size["total"]["bpw_exact"] == 16.0
    assert size["total"]["size_bytes"] == 2 * sum(parameter.numel() for parameter in loaded.model.parameters())


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_both_are_what_counting_by_hand_gives(loaded: LoadedModel, parts: dict[str, Part], bits: int) -> None:
    quantized = quantize_all(loaded, parts, bits)
    linear = sum(loaded.model.get_submodule(name).weight.numel() for name in quantized)
    total = sum(parameter.numel() for parameter in loaded.model.parameters())
    size = measure(loaded.model, parts.values(), quantized)["total"]
    assert size["quantized_weights"] == linear
    assert size["bpw_paper"] == pytest.approx((bits * linear + 16 * (total - linear)) / total, rel=1e-12)
    stored = sum(tensor.numel() * tensor.element_size() for one in quantized.values() for tensor in one.pack().values())
    assert size["size_bytes"] == stored + 2 * (total - linear)
    assert size["bpw_exact"] == pytest.approx(8 * size["size_bytes"] / total, rel=1e-12)


def test_a_part_counts_its_own(loaded: LoadedModel, parts: dict[str, Part]) -> None:
    quantized = {name: one for name, one in quantize_all(loaded, parts, 4).items() if name.startswith("vision_model")}
    size = measure(loaded.model, parts.values(), quantized)
    assert size["parts"]["vision"]["bpw_paper"] < 16
    assert size["parts"]["language"]["bpw_paper"] == 16.0


def test_a_shared_parameter_counts_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    model["b"].weight = model["a"].weight
    assert measure(model, [], {})["total"]["parameters"] == 16


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=rtn", "bits=3"),
        ("method=rtn", "bits=5", "method.symmetric=true", "component.connector.group_size=16"),
        ("method=uniform", "bits=4"),
        ("method=gptq", "bits=2", "component.connector.group_size=32"),
        ("method=gptq", "bits=3", "method.sequential=true", "component.connector.layers=[mlp]"),
        ("method=awq", "bits=7"),
        ("method=hqq", "bits=6", "method.group_size=8"),
        ("method=kmeans", "bits=3"),
        ("method=normal_float", "bits=3", "method.group_size=16"),
    ],
    ids=" ".join,
)
def test_the_exact_size_is_that_of_the_stored_tensors(
    composed: Callable[..., DictConfig],
    loaded: LoadedModel,
    parts: dict[str, Part],
    tmp_path: Path,
    overrides: tuple[str, ...],
) -> None:
    sweep = plan([composed(*SMALL, "component=connector", *overrides)])
    cell = sweep.cells[-1]
    store = Store.open(tmp_path / "store")
    session = Session(loaded, parts, build("task", sweep.configs[cell.id]["task"]), 8, store)
    requests = session.requests(cell)
    assert not session.compute(requests, Progress(1))
    units = [store.artifacts.load(ArtifactKind.QUANTIZED, one.key)[0] for one in requests]
    # Modules that input scales are folded into keep their size in the model.
    tensors = [tensor for unit in units for name, tensor in unit.items() if not name.endswith(DENSE)]
    quantized = sum(shape[0] * shape[1] for one in requests for shape in one.unit.linears.values())
    found, _ = load(requests, store)
    size = measure(loaded.model, parts.values(), found.weights)["parts"]["connector"]
    assert size["quantized_weights"] == quantized
    stored = sum(tensor.nbytes for tensor in tensors)
    assert size["size_bytes"] == stored + 2 * (size["parameters"] - quantized)
    assert size["bpw_exact"] == pytest.approx(8 * size["size_bytes"] / size["parameters"], rel=1e-12)
