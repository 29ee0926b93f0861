"""Tell whether transformers loads modules that lack a weight."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel, initialization

# By the innermost model: the same for all of its linears, and asked for each of them in every cell.
_loads_packed: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def loads_packed(model: nn.Module, name: str) -> bool:
    """Return whether the linear ``name`` may lack ``weight`` when transformers loads a checkpoint.

    A packed linear has its codes instead. transformers still calls ``_init_weights`` of the innermost model around it (5.23),
    and Siglip's reads the weight.
    """
    components = name.split(".")
    paths = [".".join(components[:count]) for count in range(len(components))]
    owner = [module for path in paths if isinstance(module := model.get_submodule(path), PreTrainedModel)][-1:]
    if not owner:
        return True
    if owner[0] not in _loads_packed:
        _loads_packed[owner[0]] = _initializes_bare(owner[0])
    return _loads_packed[owner[0]]


def _initializes_bare(model: PreTrainedModel) -> bool:
    bare = nn.Linear(1, 1, bias=False, device="meta")
    del bare.weight
    try:
        with torch.no_grad(), initialization.guard_torch_init_functions():
            model._init_weights(bare)
    except AttributeError:
        return False
    return True
