"""Every family at a toy size, with random weights: its blocks are called as calibration expects, and replay exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmq_sweeps.calibrate import Replay, capture
from mmq_sweeps.targets import find_parts
from tests.models.toys import BATCH, FAMILIES, LENGTH, PADDED, toy_batch, toy_model


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_replay_exactly_and_every_linear_has_statistics(name: str) -> None:
    torch.manual_seed(0)
    loaded = toy_model(name)
    parts = find_parts(loaded.model, loaded.config["parts"])
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
        replay = Replay(loaded, part, calls[part.name])
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
            assert {one.stats.count for one in found} == {BATCH * LENGTH - PADDED}
