"""Names, dtypes and values of an exported checkpoint are those that ``save_pretrained`` writes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.export import stored_names
from mmq_sweeps.export.checkpoint_files import exported_config
from mmq_sweeps.export.choice import Choice
from mmq_sweeps.export.formats.base import LinearSpec
from mmq_sweeps.export.formats.compressed_tensors import CompressedTensors
from mmq_sweeps.export.formats.dequantized import Dequantized
from mmq_sweeps.export.tensors import ExportedTensors
from mmq_sweeps.export.writer import WeightFiles, write_json
from mmq_sweeps.methods.formats import Format, QuantizedWeight, round_nearest
from mmq_sweeps.models import experts
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.targets import find_parts
from tests.models.toys import FAMILIES, toy_batch, toy_model

WIDTHS = (4, 3, 8, 5)
# transformers 5.23 initialises SigLIP's attention through weights that packed linears do not have.
NOT_PACKED = "paligemma2_3b"


class Rounded(dict[str, QuantizedWeight]):
    """Weights of a model rounded to a mix of widths, with the interface that an export needs of ``CellWeights``."""

    def __init__(self, loaded: LoadedModel, names: list[str]) -> None:
        formats = (Format(bits, symmetric=True) for bits in itertools.cycle(WIDTHS))
        super().__init__(
            {name: round_nearest(loaded.weight(name), format) for name, format in zip(names, formats, strict=False)}
        )
        self.specs = {
            name: LinearSpec(weight.format, weight.shape, kind="expert" if experts.parse(name) else "linear")
            for name, weight in self.items()
        }
        self.linears = {name: spec for name, spec in self.specs.items() if spec.kind == "linear"}
        every = loaded.model.named_modules()
        self.dense_linears = tuple(name for name, one in every if isinstance(one, nn.Linear) and name not in self)
        self.dense: dict[str, torch.Tensor] = {}


def everything(loaded: LoadedModel) -> list[str]:
    parts = find_parts(loaded.model, loaded.config).values()
    return [name for part in parts if not part.at_an_end for unit in part.units for name in unit.linears]


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_are_those_of_save_pretrained(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = toy_model(name)
    weights: Any = Rounded(loaded, everything(loaded))
    found = ExportedTensors(loaded, weights, Choice(Dequantized(), torch.float32))
    written = dict(found)
    assert {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in written.items()} == found.specs
    with loaded.weights_replaced({name: weight.dequantize() for name, weight in weights.items()}), quiet_libraries():
        loaded.model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == written.keys()
    for key, tensor in saved.items():
        assert torch.equal(tensor, written[key]), key


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_loads_a_mix_of_packed_linears(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = toy_model(name)
    weights: Any = Rounded(loaded, everything(loaded))
    tensors = ExportedTensors(loaded, weights, Choice(CompressedTensors(), torch.float32))
    with WeightFiles(tmp_path, tensors.specs) as files:
        for key, tensor in tensors:
            files.write(key, tensor)
    settings = CompressedTensors().settings(tensors.packed, tensors.dense)
    write_json(
        tmp_path / "config.json", exported_config(loaded.model.config.to_dict(), loaded.model, tensors, settings)
    )
    if name == NOT_PACKED:
        with quiet_libraries(), pytest.raises(AttributeError, match="'Linear' object has no attribute 'weight'"):
            type(loaded.model).from_pretrained(tmp_path)
        return
    with quiet_libraries():
        model, info = type(loaded.model).from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()), info
        model.hf_quantizer.compressor.decompress_model(model)
    batch = toy_batch(name)
    with torch.no_grad():
        found = model.eval()(**batch)
        with loaded.weights_replaced({key: weight.dequantize() for key, weight in weights.items()}):
            expected = loaded.model(**batch)
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_each_packed_linear_has_a_name_of_its_own(name: str) -> None:
    loaded = toy_model(name)
    linears = [linear for linear in everything(loaded) if experts.parse(linear) is None]
    prefixes = stored_names.prefixes(loaded.model, linears)
    assert len(set(prefixes.values())) == len(linears)
    assert prefixes.keys() == set(linears)
