"""Names and shapes of a model's tensors in a checkpoint, as ``save_pretrained`` writes them.

The names in a checkpoint may differ from those in the model (LLaVA), and several tensors may be stored as one. transformers
keeps how it converted them when it loaded the model, and reverses it here group by group instead of all at once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
import transformers
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from mmq_sweeps.grouping import grouped

# A tensor of a numbered layer, by the layer.
LAYER = re.compile(r"(.*?\.\d+)\.")


def saved_tensors(model: transformers.PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint holds, by their names in the model; tied ones once. Offloaded ones are on meta."""
    state = model.state_dict()
    left_out = set(model._keys_to_ignore_on_save or ())
    kept = {name: tensor for name, tensor in state.items() if name not in left_out}
    saved: dict[str, Tensor] = remove_tied_weights_from_state_dict(kept, model)
    return saved


def as_stored(model: transformers.PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors``, a group of ``groups`` or a part of it, as a checkpoint stores them; they may be on meta."""
    stored: dict[str, Tensor] = revert_weight_conversion(model, dict(tensors))
    return stored


def groups(names: Iterable[str]) -> Iterable[list[str]]:
    """Return the names of tensors that may be stored together: those of a layer, or of a module outside the layers."""
    return grouped(names, lambda name: layer[1] if (layer := LAYER.match(name)) else name.rpartition(".")[0]).values()


def prefixes(model: transformers.PreTrainedModel, linears: Iterable[str]) -> dict[str, str]:
    """Return the beginning of the names of each linear's tensors in a checkpoint; loaders also know the linear's own name.

    It is the linear's own name if the checkpoint stores its weight in another shape, or together with another.
    """
    found: dict[str, str] = {}
    for name in linears:
        shape = tuple(model.get_submodule(name).weight.shape)
        stored = as_stored(model, {f"{name}.weight": torch.empty(shape, device="meta")})
        alike = [key for key, tensor in stored.items() if key.endswith(".weight") and tuple(tensor.shape) == shape]
        found[name] = alike[0].removesuffix(".weight") if len(stored) == len(alike) == 1 else name
    counts = Counter(found.values())
    return {name: prefix if counts[prefix] == 1 else name for name, prefix in found.items()}
