"""GPTQModel's side: its class ``GPTQ`` with its own Hessians, shared among siblings as it shares them."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ, SharedHessianFactorCache
from torch import Tensor, nn
from work import Restored, serve

Weights = Mapping[str, Mapping[str, Tensor]]


def gptq_block(weights: Weights, inputs: Mapping[str, Tensor], bits: list[int]) -> Restored:
    found: Restored = {}
    for name, members in weights.items():
        # Share a Hessian among an input's bit-widths, as it does among siblings: by itself it sums one for each bit-width.
        leader = solver(next(iter(members.values())), bits[0])
        for batch in inputs[name]:
            leader.add_batch(batch[None], None)
        found |= solved(members, leader, bits)
    return found


def gptq_layer(weights: Weights, grams: Mapping[str, Tensor], bits: list[int]) -> Restored:
    found: Restored = {}
    for name, members in weights.items():
        leader = solver(next(iter(members.values())), bits[0])
        leader.H, leader.nsamples = 2 * grams[name], len(grams[name])
        found |= solved(members, leader, bits)
    return found


def solved(members: Mapping[str, Tensor], leader: GPTQ, bits: list[int]) -> Restored:
    found: Restored = {member: [] for member in members}
    for width in bits:
        cache = SharedHessianFactorCache(0, "input")
        for member, weight in members.items():
            own = solver(weight, width)
            own.adopt_hessian_from(leader)
            own.attach_shared_hessian_cache(cache if len(members) > 1 else None)
            found[member].append(own.quantize()[0])
            own.free()
    return found


def solver(weight: Tensor, width: int) -> GPTQ:
    """Return its solver in activation order, with an asymmetric grid for each row."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    config = QuantizeConfig(
        bits=width,
        group_size=-1,
        desc_act=True,
        act_group_aware=False,
        sym=False,
        damp_percent=0.01,
        offload_to_disk=False,
    )
    own = GPTQ(layer, config)
    own.quantizer.configure(perchannel=True)
    return own


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    serve({"gptq_block": gptq_block, "gptq_layer": gptq_layer}, sys.argv[1])
