"""Every family at a toy size, with random weights: its blocks are called as calibration expects, and replay exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmq_sweeps.models.experts import parse
from mmq_sweeps.models.model_check import Filled
from mmq_sweeps.quantization.calibration import BlockRunner, capture
from mmq_sweeps.quantization.targets import find_parts
from tests.models.toys import BATCH, FAMILIES, IMAGE_TOKEN, LENGTH, PADDED, toy_batch, toy_model


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_replay_exactly_and_every_linear_has_statistics(name: str) -> None:
    torch.manual_seed(0)
    loaded = toy_model(name)
    parts = {name: part for name, part in find_parts(loaded.model, loaded.config).items() if not part.at_an_end}
    outputs: dict[str, Tensor] = {}
    for part in parts.values():
        loaded.model.get_submodule(part.blocks[-1]).register_forward_hook(
            lambda _block, _inputs, output, part=part.name: outputs.update(
                {part: output[0] if isinstance(output, tuple) else output}
            )
        )
    calls = capture(loaded, parts.values(), [toy_batch(name)])
    in_the_model = dict(outputs)
    for part in parts.values():
        replay = BlockRunner(loaded, part, calls[part.name])
        found = [
            one
            for path in part.blocks
            for one in replay.advance(
                [name for unit in part.units for name in unit.linears if name.startswith(f"{path}.")]
            )
        ]
        assert torch.equal(replay.hidden[0], in_the_model[part.name])
        linears = [linear for one in found for linear in one.linears]
        assert sorted(linears) == sorted(linear for unit in part.units for linear in unit.linears)
        if part.masked is True:
            tokens = BATCH * LENGTH - PADDED
            assert {one.stats.count for one in found if not any(map(parse, one.linears))} == {tokens}
            firsts = [one.stats.count for one in found if any("gate_up_proj[" in linear for linear in one.linears)]
            assert sum(firsts) == len(part.blocks) * 2 * tokens * bool(firsts)


@pytest.mark.parametrize("name", [name for name, (*_, tokens) in FAMILIES.items() if tokens])
def test_the_places_of_image_features_are_counted_by_row(name: str) -> None:
    """The family itself raises nothing if a row has a place too many and another a place too few."""
    torch.manual_seed(0)
    loaded, batch, tokens = toy_model(name), toy_batch(name), FAMILIES[name][2]
    with torch.no_grad(), Filled() as filled:
        loaded.model(**batch)
    assert filled.places == [tokens, tokens]
    batch["input_ids"][0, 2], batch["input_ids"][1, 1] = 7, IMAGE_TOKEN
    with torch.no_grad(), Filled() as filled:
        loaded.model(**batch)
    assert filled.places == [tokens - 1, tokens + 1]
