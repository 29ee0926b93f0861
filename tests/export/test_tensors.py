"""Names, dtypes and values of an exported checkpoint are those that ``save_pretrained`` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.export import stored_names
from mmq_sweeps.export.formats.base import LinearSpec
from mmq_sweeps.export.formats.dequantized import Dequantized
from mmq_sweeps.export.tensors import ExportedTensors
from mmq_sweeps.methods.affine import Format, QuantizedWeight, round_nearest
from mmq_sweeps.models import experts
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.targets import find_parts
from tests.models.toys import FAMILIES, toy_model


class Rounded(dict[str, QuantizedWeight]):
    """Weights of a model rounded to 4 bits: what an export asks of ``CellWeights``."""

    def __init__(self, loaded: LoadedModel, names: list[str]) -> None:
        super().__init__({name: round_nearest(loaded.weight(name), Format(4)) for name in names})
        self.specs = {name: LinearSpec(weight.format, weight.shape) for name, weight in self.items()}
        self.linears, self.dense_linears, self.dense = self.specs, (), {}


def everything(loaded: LoadedModel) -> list[str]:
    parts = find_parts(loaded.model, loaded.config).values()
    return [name for part in parts if not part.at_an_end for unit in part.units for name in unit.linears]


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_are_those_of_save_pretrained(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = toy_model(name)
    weights: Any = Rounded(loaded, everything(loaded))
    found = ExportedTensors(loaded, weights, Dequantized(), torch.float32)
    written = dict(found)
    assert {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in written.items()} == found.specs
    with loaded.weights_replaced({name: weight.dequantize() for name, weight in weights.items()}), quiet_libraries():
        loaded.model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == written.keys()
    for key, tensor in saved.items():
        assert torch.equal(tensor, written[key]), key


@pytest.mark.parametrize("name", FAMILIES)
def test_each_packed_linear_has_a_name_of_its_own(name: str) -> None:
    loaded = toy_model(name)
    linears = [linear for linear in everything(loaded) if experts.parse(linear) is None]
    prefixes = stored_names.prefixes(loaded.model, linears)
    assert len(set(prefixes.values())) == len(linears)
    assert prefixes.keys() == set(linears)
