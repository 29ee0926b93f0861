"""Run the model once over the calibration batches, and record the calls of every part's blocks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from mmq_sweeps.models.decoding import with_decoder_inputs
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.padding import cross_mask, is_another_sequence, key_mask, names_others, own_mask
from mmq_sweeps.quantization.calibration.calls import (
    BlockCall,
    Copies,
    Pass,
    Slot,
    argument,
    argument_name,
    change_count,
    first_output,
    named_arguments,
    offloaded,
    slots,
)
from mmq_sweeps.quantization.targets import Part
from mmq_sweeps.quantization.vision_tokens import QUERY_LENGTH, in_the_text, leading, with_kinds


@torch.no_grad()
def capture(
    loaded: LoadedModel,
    parts: Iterable[Part],
    batches: Iterable[Mapping[str, Any]],
    start: int = 0,
    by_kind: bool = False,
) -> dict[str, list[Pass]]:
    """Run the model over ``batches`` once; return every pass through ``parts``, by part name.

    Block ``start`` has its input captured in every pass, even in those where it is the previous block's output, so that
    a ``BlockRunner`` can start there. The decoder of an encoder-decoder reads the ``decoder_input_ids`` of a batch or,
    without them, the text that the model generates. With ``by_kind`` the masks of parts that see both kinds of tokens tell
    vision tokens from text tokens.
    """
    parts = list(parts)
    passes: dict[str, list[Pass]] = {part.name: [] for part in parts}
    for batch in batches:
        inputs = with_decoder_inputs(loaded.model, loaded.to_device(batch))
        copies = Copies("cpu" if offloaded(loaded) else None)
        with ExitStack() as hooks:
            mask = inputs.get("attention_mask")
            listeners = [
                Listener(
                    part, mask, copies.of, start, by_kind, in_the_text(loaded.model, part, inputs) if by_kind else None
                )
                for part in parts
            ]
            for listener in listeners:
                hooks.enter_context(listener.listening(loaded.model))
            loaded.model(**inputs, use_cache=False)
        for listener in listeners:
            passes[listener.part.name] += listener.passes()
    return passes


class Listener:
    """Recorder of the calls of a part's blocks during a forward pass of the model."""

    def __init__(
        self,
        part: Part,
        mask: Any,
        copy: Callable[[Any], Any],
        start: int,
        by_kind: bool = False,
        vision: Tensor | None = None,
    ) -> None:
        self.part = part
        self._forward_mask, self._copy, self._start = mask, copy, start
        self._by_kind, self._vision = by_kind and part.vision_tokens is not None, vision
        self._around: dict[str, dict[str, Any]] = {}
        self._calls: list[tuple[int, BlockCall]] = []
        # The inputs of the first block; those of the others are outputs that are computed again.
        self._first: list[Tensor] = []
        self._output: tuple[Any, int] | None = None

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as hooks:
            if self.part.masked_linears:
                for path in {path for block in self.part.blocks for path in self._modules_around(block)}:
                    begin = partial(self._begin, path)
                    hooks.enter_context(model.get_submodule(path).register_forward_pre_hook(begin, with_kwargs=True))
            for index, path in enumerate(self.part.blocks):
                block = model.get_submodule(path)
                hooks.enter_context(block.register_forward_pre_hook(partial(self._keep, index), with_kwargs=True))
                hooks.enter_context(block.register_forward_hook(self._end))
            yield
        self._output = None

    def passes(self) -> list[Pass]:
        """Return the recorded calls, split at each call of the first block; RuntimeError if a block was skipped."""
        blocks = self.part.blocks
        for place, (index, _) in enumerate(self._calls):
            if index != place % len(blocks):
                raise RuntimeError(
                    f"{self.part.name}: {blocks[index]} was called where {blocks[place % len(blocks)]} was expected; "
                    "calibration needs blocks that are called one after the other, each of them in every pass"
                )
        if left := len(self._calls) % len(blocks):
            raise RuntimeError(f"{self.part.name}: a pass ended before {blocks[left]}; calibration needs all blocks")
        calls = [call for _, call in self._calls]
        starts = range(0, len(calls), len(blocks))
        return [
            Pass(hidden, tuple(calls[start : start + len(blocks)]))
            for hidden, start in zip(self._first, starts, strict=True)
        ]

    def _modules_around(self, block: str) -> list[str]:
        """Return the part's module and the modules inside it that hold ``block``, outermost first.

        The head has the mask of the tokens that it receives, those of the last block of the part before it.
        """
        part = self.part.follows or self.part
        if part is not self.part:
            block = part.blocks[-1]
        names = block.split(".")
        outer = len(part.module.split(".")) if part.module else 0
        return [".".join(names[:depth]) for depth in range(outer, len(names))]

    def _begin(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._around[path] = named_arguments(module, args, kwargs)

    def _end(self, _block: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = first_output(output)
        self._output = (hidden, change_count(hidden))

    def _keep(self, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the call of a block; a forward hook before it, behind its index."""
        before, changes = self._output or (None, 0)
        slot = _hidden_slot(block, args, kwargs, before, self.part.blocks[index])
        hidden = argument(slot, args, kwargs)
        follows = index > 0 and hidden is before and change_count(hidden) == changes
        named = named_arguments(block, args, kwargs)
        mask = self._text_mask(index) if self.part.masked_linears else None
        if mask is None:
            mask = own_mask(named, hidden)
        others: list[tuple[Any, Tensor | None]] = [
            (other, cross_mask(named, value))
            for other, value in slots(args, kwargs)
            if other != slot and is_another_sequence(argument_name(block, other), value, hidden)
        ]
        if self._by_kind:
            mask = self._kinds(index, mask, hidden, named)
            others = [(other, self._kinds_of_text(own, argument(other, args, kwargs))) for other, own in others]
        if (keys := key_mask(named, hidden)) is not None:
            others.append((None, keys))
        if isinstance(slot, int):
            args = args[:slot] + args[slot + 1 :]
        else:
            kwargs = {name: value for name, value in kwargs.items() if name != slot}
        # Drop caches: they would grow with every rerun, and calibration never decodes.
        args = tuple(None if isinstance(value, Cache) else value for value in args)
        kwargs = {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}
        joined = None if follows and index != self._start else hidden
        joined, mask, others, args, kwargs = self._copy((joined, mask, others, args, kwargs))
        if index == 0:
            self._first.append(joined)
            joined = None
        self._calls.append((index, BlockCall(slot, args, kwargs, joined, mask, tuple(others))))

    def _kinds(self, index: int, mask: Tensor | None, hidden: Tensor, named: Mapping[str, Any]) -> Tensor:
        """Return the kinds of a block's tokens; those of a decoder, whose encoder reads the image, are text."""
        shape = hidden.shape[:2] if mask is None else mask.shape
        if self._vision is None:
            return with_kinds(mask, leading(shape, named.get(QUERY_LENGTH, 0), hidden.device))
        if self._decodes(index):
            return with_kinds(mask, leading(shape, 0, hidden.device))
        if self._vision.shape != shape:
            raise RuntimeError(
                f"{self.part.blocks[index]}: its tokens {list(shape)} are not those of input_ids {list(self._vision.shape)}, "
                f"so model.parts.{self.part.name}.vision_tokens cannot tell which are which; choose method.vision_weight=null"
            )
        return with_kinds(mask, self._vision.to(hidden.device))

    def _kinds_of_text(self, mask: Tensor | None, other: Tensor) -> Tensor | None:
        """Return the kinds of the tokens that a block attends to if they are those of the text, as an encoder's output."""
        if self._vision is None or self._vision.shape != other.shape[:2]:
            return mask
        return with_kinds(mask, self._vision.to(other.device))

    def _decodes(self, index: int) -> bool:
        around = self._modules_around(self.part.blocks[index])
        return any(self._around.get(path, {}).get("encoder_hidden_states") is not None for path in around)

    def _text_mask(self, index: int) -> Tensor | None:
        """Return the mask of a block's hidden state from the calls of the modules around it.

        A part called without a mask has no padding; a part called with its layers' own form of it (by kind of
        attention, or a value per pair of tokens) has that of the forward pass. The mask that a model is called with is
        its encoder's; a decoder that attends to an encoder has a mask of its own or none.
        """
        mask = self._forward_mask
        for path in self._modules_around(self.part.blocks[index]):
            if path not in self._around:
                continue
            given = self._around[path].get("attention_mask")
            decodes = self._around[path].get("encoder_hidden_states") is not None
            if _is_token_mask(given):
                mask = given
            elif given is None and (decodes or path == (self.part.follows or self.part).module):
                mask = None
        return mask.bool() if _is_token_mask(mask) else None


def _is_token_mask(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.dim() == 2


def _hidden_slot(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], before: Any, path: str) -> Slot:
    """Return the slot of a block's hidden state.

    It is the previous block's output if that is passed; otherwise the first positional argument, or the first suitable
    argument that the signature names. It is never the sequence that a decoder attends to, though its encoder may have
    returned that just before.
    """
    for slot, value in slots(args, kwargs):
        if before is not None and value is before and not names_others(argument_name(block, slot)):
            return slot
    if args:
        return 0
    for name in [*inspect.signature(block.forward).parameters, *kwargs]:
        value = kwargs.get(name)
        if isinstance(value, Tensor) and value.dim() > 1 and value.is_floating_point() and not names_others(name):
            return name
    raise RuntimeError(f"{path}: none of its arguments ({', '.join(kwargs)}) is a hidden state")
