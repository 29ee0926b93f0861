"""Which loaders take quantized linears of a model as they are; the rules are in ``identity/loads_in.py``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from mmq_sweeps.identity.loads_in import ExportedLinear, loads_in
from mmq_sweeps.models import experts
from mmq_sweeps.models.initializing import loads_packed
from mmq_sweeps.quantization.size import StoredLinear
from mmq_sweeps.quantization.targets import Part


def loaders(model: nn.Module, parts: Iterable[Part], stored: Mapping[str, StoredLinear]) -> list[str]:
    """Return the loaders of an export of ``model`` with its linears quantized as in ``stored``."""
    part_of = {name: part.name for part in parts for unit in part.units for name in unit.linears}

    def dense_only(name: str) -> bool:
        return experts.parse(name) is not None or not loads_packed(model, name)

    return loads_in(
        ExportedLinear(part_of[name], linear.format, linear.input_scaled, dense_only(name))
        for name, linear in stored.items()
    )
