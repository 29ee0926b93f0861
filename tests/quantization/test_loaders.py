from __future__ import annotations

from dataclasses import replace

import torch

from mmq_sweeps.methods.formats import Format, QuantizedWeight, round_nearest
from mmq_sweeps.models import experts
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.loaders import loaders
from mmq_sweeps.quantization.size import StoredLinear, stored_linears
from mmq_sweeps.quantization.targets import Part, find_parts
from tests.models.other_toys import make

FOUR = Format(4, symmetric=True)


def quantized(loaded: LoadedModel, part: Part, format: Format) -> dict[str, QuantizedWeight]:
    names = [name for unit in part.units for name in unit.linears]
    return {name: round_nearest(loaded.model.get_submodule(name).weight, format) for name in names}


def test_the_stored_weights_decide(loaded: LoadedModel, parts: dict[str, Part]) -> None:
    language = quantized(loaded, parts["language"], FOUR)
    assert loaders(loaded.model, parts.values(), {}) == ["transformers", "vllm"]
    assert loaders(loaded.model, parts.values(), stored_linears(language)) == ["transformers", "vllm"]
    connector = quantized(loaded, parts["connector"], FOUR)
    assert loaders(loaded.model, parts.values(), stored_linears(language | connector)) == ["transformers"]


def test_an_input_scale_beside_one_weight_must_be_dequantized(loaded: LoadedModel, parts: dict[str, Part]) -> None:
    language = quantized(loaded, parts["language"], FOUR)
    name, weight = next(iter(language.items()))
    scaled = replace(weight, input_scale=torch.ones(weight.shape[1], dtype=torch.float16))
    assert loaders(loaded.model, parts.values(), stored_linears({**language, name: scaled})) == ["dequantized"]


def test_embeddings_keep_no_loader_away(loaded: LoadedModel, parts: dict[str, Part]) -> None:
    stored = stored_linears(quantized(loaded, parts["embeddings"], Format(3, "tensor", real_zero=True)))
    stored |= stored_linears(quantized(loaded, parts["language"], FOUR))
    assert loaders(loaded.model, parts.values(), stored) == ["transformers", "vllm"]


def test_slices_of_experts_must_be_dequantized() -> None:
    toy = make("qwen3_vl_moe")
    parts = find_parts(toy.loaded.model, {"parts": toy.parts})
    linears = {name: shape for unit in parts["language"].units for name, shape in unit.linears.items()}
    apart = {name: StoredLinear(FOUR, shape) for name, shape in linears.items() if experts.parse(name) is None}
    assert loaders(toy.loaded.model, parts.values(), apart) == ["transformers", "vllm"]
    assert loaders(
        toy.loaded.model, parts.values(), {name: StoredLinear(FOUR, shape) for name, shape in linears.items()}
    ) == ["dequantized"]
