"""Recorded calls of blocks, and copies of the tensors in them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn

from mmq_sweeps.models.loading import LoadedModel

# Position of a block's argument: its index among the positional ones, or its name.
Slot = int | str


@dataclass(frozen=True)
class BlockCall:
    """Arguments of a block's call, except its hidden state, which goes to ``slot``.

    ``joined`` is the hidden state if it is not the previous block's output. ``mask`` ``[B, T]`` is true for tokens of
    the hidden state that count. ``others`` are masks of further inputs ``[B, N, D]`` by slot, such as the encoder's
    output that a decoder attends to; keys that the block itself assembles have no slot. A mask of ``None`` means that
    all tokens count.
    """

    slot: Slot
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    joined: Tensor | None = None
    mask: Tensor | None = None
    others: tuple[tuple[Slot | None, Tensor | None], ...] = ()

    def arguments(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict]:
        """Return ``args`` and ``kwargs``, on any device, with ``hidden`` in its slot."""
        if isinstance(self.slot, int):
            return (*args[: self.slot], hidden, *args[self.slot :]), kwargs
        return args, {**kwargs, self.slot: hidden}


@dataclass(frozen=True)
class Pass:
    """A run through a part: ``hidden`` is its first block's input, ``calls`` are the calls of its blocks, in order.

    A forward pass of the model may run a part several times: a retriever's Q-Former runs once for the image and once
    for the text.
    """

    hidden: Tensor
    calls: tuple[BlockCall, ...]


def argument(slot: Slot, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[slot] if isinstance(slot, int) else kwargs[slot]


def first_output(output: Any) -> Any:
    """Return the hidden state in a block's output: all of it, or the first of several."""
    if isinstance(output, Mapping):
        return next(iter(output.values()))
    return output[0] if isinstance(output, (tuple, list)) else output


def change_count(tensor: Any) -> int:
    """Return how often a tensor was changed in place; 0 for inference tensors, which do not count changes."""
    return 0 if not isinstance(tensor, Tensor) or tensor.is_inference() else tensor._version


def slots(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Slot, Any]]:
    return [*enumerate(args), *kwargs.items()]


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return every argument of a call by name; positional ones without a name are left out."""
    return dict(zip(_positional_names(module), args, strict=False)) | kwargs


def argument_name(module: nn.Module, slot: Slot) -> str:
    """Return the name of the argument at ``slot``, or an empty string."""
    if isinstance(slot, str):
        return slot
    names = _positional_names(module)
    return names[slot] if slot < len(names) else ""


def _positional_names(module: nn.Module) -> list[str]:
    return [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]


def offloaded(loaded: LoadedModel) -> bool:
    """Return whether some weights are offloaded, so that activations should not fill the device either."""
    return any(parameter.device.type == "meta" for parameter in loaded.model.parameters())


class Copies:
    """Copies of tensors on ``device``, or each on its own: later changes in place do not reach them.

    A tensor is copied once for as long as it keeps its values. Copies and originals are held until this is dropped.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self._device = device
        # Holds the originals too, because the id of a freed tensor may be reused.
        self._known: dict[int, tuple[Tensor, int, Tensor]] = {}

    def of(self, value: Any) -> Any:
        """Return ``value`` with its tensors, however nested, replaced by their copies."""
        return recursively_apply(self._copy, value)

    def _copy(self, tensor: Tensor) -> Tensor:
        changes = change_count(tensor)
        known = self._known.get(id(tensor))
        if known is None or known[1] != changes:
            known = self._known[id(tensor)] = (tensor, changes, _copied(tensor, self._device))
        return known[2]


def _copied(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    """Copy a tensor to another device or, with the same strides, to its own.

    Kernels are chosen by strides, and sums of another kernel round otherwise. Dimensions that are expanded stay so: a
    mask for all heads takes the memory of one.
    """
    if device is not None and (moved := tensor.to(device)) is not tensor:
        return moved
    expanded = [dim for dim, stride in enumerate(tensor.stride()) if stride == 0 and tensor.shape[dim] > 1]
    least = tensor
    for dim in expanded:
        least = least.narrow(dim, 0, 1)
    copy = torch.empty_strided(least.shape, least.stride(), dtype=tensor.dtype, device=tensor.device).copy_(least)
    return copy.expand(tensor.shape) if expanded else copy
