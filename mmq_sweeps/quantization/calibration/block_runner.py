"""Run a part block by block over its recorded calls, and collect the statistics of each block's linears."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn

from mmq_sweeps.memory import ran_out_of_memory
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.calibration.calls import (
    BlockCall,
    Copies,
    Pass,
    argument,
    first_output,
    offloaded,
    slots,
)
from mmq_sweeps.quantization.calibration.collector import Collector
from mmq_sweeps.quantization.folding import Call, Fold, find_folds
from mmq_sweeps.quantization.shared_stats import SharedStats
from mmq_sweeps.quantization.targets import Part

logger = logging.getLogger(__name__)


def block_statistics(
    loaded: LoadedModel,
    part: Part,
    passes: Sequence[Pass],
    wanted: Collection[str],
    keep_inputs: bool = False,
    by_kind: bool = False,
) -> Iterator[tuple[int, list[SharedStats]]]:
    """Yield each block's index and the statistics, at full-precision inputs, of the linears ``wanted`` in it.

    They say where input scales of a unit's linears fold. Blocks without such linears are skipped. With ``by_kind`` they also
    have vision and text tokens apart, for which ``passes`` were captured by kind.
    """
    replay = BlockRunner(loaded, part, passes)
    by_block = [_inside(path, wanted) for path in part.blocks]
    last = max((index for index, names in enumerate(by_block) if names), default=-1)
    for index, names in enumerate(by_block[: last + 1]):
        folds = replay.folds([unit.linears for unit in part.units if unit.block == index]) if names else {}
        found = replay.advance(names, keep_inputs, by_kind)
        if names:
            yield index, [replace(shared, fold=folds.get(frozenset(shared.linears))) for shared in found]


def _inside(path: str, names: Collection[str]) -> list[str]:
    return [name for name in names if name == path or name.startswith(f"{path}.")]


class BlockRunner:
    """Block-by-block execution of a part over ``passes``; ``hidden`` is the current block's input in each.

    A runner that starts at a ``block`` beyond the first needs its input captured in every pass: ``capture(start=block)``.
    """

    def __init__(self, loaded: LoadedModel, part: Part, passes: Sequence[Pass], block: int = 0) -> None:
        self._loaded, self._part, self._passes = loaded, part, passes
        self._away = offloaded(loaded)
        self.hidden = [one.hidden for one in passes]
        self.block = block
        if block > 0 and (lacking := sum(one.calls[block].joined is None for one in passes)):
            raise RuntimeError(
                f"{part.name}: {lacking} of {len(passes)} passes lack the input of {part.blocks[block]}, where the run is to "
                f"start; capture them with start={block}"
            )
        self._join()

    @property
    def joined(self) -> bool:
        """True if the model does something between the previous block and the current one, in any of the passes.

        The current block then receives its input, in those passes, from the captured run of the model.
        """
        return self.block > 0 and any(one.calls[self.block].joined is not None for one in self._passes)

    def statistics(
        self, linears: Collection[str], keep_inputs: bool = False, by_kind: bool = False
    ) -> list[SharedStats]:
        """Return statistics of the inputs of ``linears``, which are in the current block."""
        collector = self._collector(linears, keep_inputs, by_kind)
        for _ in self._run(collector):
            pass
        return collector.statistics()

    def advance(
        self, linears: Collection[str] = (), keep_inputs: bool = False, by_kind: bool = False
    ) -> list[SharedStats]:
        """Return the same statistics, and pass the block's output on to the next block."""
        collector = self._collector(linears, keep_inputs, by_kind)
        for index, output in enumerate(self._run(collector)):
            self.hidden[index] = output
        self.block += 1
        self._join()
        return collector.statistics()

    def folds(self, units: Sequence[Collection[str]]) -> dict[frozenset[str], Fold]:
        """Return where the input scales of ``units`` of the current block fold, by the linears that share the input.

        It is proved on an item of a pass of each kind: by the block's arguments, and by whether it is given more tokens
        than one of its numbers says (a Q-Former's queries).
        """
        path = self._part.blocks[self.block]
        if isinstance(self._loaded.model.get_submodule(path), nn.Linear):
            return {}
        kinds: dict[Hashable, int] = {}
        for place, one in enumerate(self._passes):
            kinds.setdefault(_kind(one.calls[self.block], self.hidden[place]), place)
        why: Exception | None = None
        for items in (1, None):
            calls: list[Call] = [partial(self._arguments, place, items) for place in kinds.values()]
            try:
                with self._loaded.onloaded(path):
                    found = find_folds(self._loaded.model, path, calls, units)
                return {frozenset(fold.linears): fold for fold in found}
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                if ran_out_of_memory(error):
                    raise
                why = error  # Of an item, perhaps because it only looks like a batch.
        logger.warning("%s: cannot be run again to fold input scales, so its linears get none: %s", path, why)
        return {}

    def _arguments(self, place: int, items: int | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        _, _, args, kwargs = self._copied(place, items)
        return args, kwargs

    def _copied(
        self, place: int, items: int | None = None
    ) -> tuple[Tensor, Tensor | None, tuple[Any, ...], dict[str, Any]]:
        """Return a pass's hidden state, its mask, and the arguments of the current block with the hidden state among them.

        With ``items``, only so many of the batch, if it is one.
        """
        call = self._passes[place].calls[self.block]
        inputs: Any = (self.hidden[place], call.mask, call.args, call.kwargs)
        if items is not None and self.hidden[place].dim() == 3:
            inputs = recursively_apply(partial(_first_items, items, len(self.hidden[place])), inputs)
        # Copied, because a block may change its input in place, and runs several times.
        hidden, mask, args, kwargs = Copies(self._loaded.device if self._away else None).of(inputs)
        return hidden, mask, *call.arguments(hidden, args, kwargs)

    def _collector(self, linears: Collection[str], keep_inputs: bool, by_kind: bool) -> Collector:
        # Unless the yaml says otherwise, the masks are those that blocks are called with.
        masked = self._part.masked_linears if self._part.masked else dict.fromkeys(linears, False)
        return Collector(linears, masked, keep_inputs, by_kind)

    def _join(self) -> None:
        if self.block < len(self._part.blocks):
            for place, one in enumerate(self._passes):
                if (joined := one.calls[self.block].joined) is not None:
                    self.hidden[place] = joined

    @torch.no_grad()
    def _run(self, collector: Collector) -> Iterator[Tensor]:
        path = self._part.blocks[self.block]
        block = self._loaded.model.get_submodule(path)
        with self._loaded.onloaded(path), collector.listening(self._loaded.model):
            for place, one in enumerate(self._passes):
                call = one.calls[self.block]
                hidden, mask, args, kwargs = self._copied(place)
                others = [(None if slot is None else argument(slot, args, kwargs), own) for slot, own in call.others]
                if mask is None and any(other is not None for _, other in others):
                    mask = torch.ones(hidden.shape[:-1], dtype=torch.bool)  # Marks its tokens, not the others'.
                collector.begin(mask, others)
                if isinstance(block, nn.Linear):
                    collector.receive(path, hidden)
                    yield self.hidden[place]
                    continue
                output = first_output(block(*args, **kwargs))
                yield output.cpu() if self._away else output


def _first_items(items: int, batch: int, value: Tensor) -> Tensor:
    """Return the first ``items`` of a tensor for each of a ``batch``; other tensors as they are."""
    return value[:items] if value.dim() > 1 and len(value) == batch else value


def _kind(call: BlockCall, hidden: Tensor) -> Hashable:
    """Return the kind of a call: its arguments' types and dimensions, apart from the number of its tokens."""

    def of(value: Any) -> Hashable:
        if isinstance(value, Tensor):
            return value.dim()
        if isinstance(value, int):
            return value, hidden.shape[-2] > value
        return type(value).__name__

    return tuple((slot, of(value)) for slot, value in slots(call.args, call.kwargs)), hidden.dim()
