"""Layer statistics, block by block.

A full-precision run over the calibration batches captures the calls of every part's blocks. A part is then rerun block
by block from the input of its first block, and only the current block's statistics are in memory. Linears with the same
input tensor (query, key and value) share their statistics.

Blocks are called as the model called them, whatever their arguments are named. If the model does something between two
blocks (a convolution between the stages of a vision tower, the step from an encoder to its decoder, image features
added behind some layers), the later block's input is captured as well.

The head is a part whose one block is the linear itself. It is never run alone: its statistics are those of the captured
hidden states, and its output, a value for every word of the vocabulary, would take more memory than all else.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn
from transformers.cache_utils import Cache

from mmq_sweeps.memory import ran_out_of_memory
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.models import experts
from mmq_sweeps.models.decoding import with_decoder_inputs
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.padding import cross_mask, is_another_sequence, key_mask, names_others, own_mask
from mmq_sweeps.quantization.folding import Call, Fold, find_folds
from mmq_sweeps.quantization.targets import Part

logger = logging.getLogger(__name__)
# Tokens summed in single precision before being added to the double-precision sums: TOKENS_AT_ONCE, or as many as fit
# into WAITING_BYTES, but at least LEAST_TOKENS, so that adding does not take as long as multiplying.
TOKENS_AT_ONCE, WAITING_BYTES, LEAST_TOKENS = 4096, 2**23, 512
# Rows of a Gram matrix summed at a time.
PANEL = 256
# Position of a block's argument: its index among the positional ones, or its name.
Slot = int | str


@dataclass(frozen=True)
class SharedStats:
    """Statistics of an input, the full names of the linears that it feeds, and its number of tokens that are not finite.

    ``fold`` says where a scale of the input can go; None if there is no such place, and behind quantized units.
    """

    linears: tuple[str, ...]
    stats: LayerStats
    not_finite: int = 0
    fold: Fold | None = None


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


@torch.no_grad()
def capture(
    loaded: LoadedModel, parts: Iterable[Part], batches: Iterable[Mapping[str, Any]], start: int = 0
) -> dict[str, list[Pass]]:
    """Run the model over ``batches`` once; return every pass through ``parts``, by part name.

    Block ``start`` has its input captured in every pass, even in those where it is the previous block's output, so that
    a ``BlockRunner`` can start there. The decoder of an encoder-decoder reads the ``decoder_input_ids`` of a batch or,
    without them, the text that the model generates.
    """
    parts = list(parts)
    passes: dict[str, list[Pass]] = {part.name: [] for part in parts}
    for batch in batches:
        inputs = with_decoder_inputs(loaded.model, loaded.to_device(batch))
        copies = Copies("cpu" if _offloaded(loaded) else None)
        with ExitStack() as hooks:
            listeners = [_Listener(part, inputs.get("attention_mask"), copies.of, start) for part in parts]
            for listener in listeners:
                hooks.enter_context(listener.listening(loaded.model))
            loaded.model(**inputs, use_cache=False)
        for listener in listeners:
            passes[listener.part.name] += listener.passes()
    return passes


def block_statistics(
    loaded: LoadedModel,
    part: Part,
    passes: Sequence[Pass],
    wanted: Collection[str],
    keep_inputs: bool = False,
) -> Iterator[tuple[int, list[SharedStats]]]:
    """Yield each block's index and the statistics, at full-precision inputs, of the linears ``wanted`` in it.

    They say where input scales of a unit's linears fold. Blocks without such linears are skipped.
    """
    replay = BlockRunner(loaded, part, passes)
    by_block = [_inside(path, wanted) for path in part.blocks]
    last = max((index for index, names in enumerate(by_block) if names), default=-1)
    for index, names in enumerate(by_block[: last + 1]):
        folds = replay.folds([unit.linears for unit in part.units if unit.block == index]) if names else {}
        found = replay.advance(names, keep_inputs)
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
        self._away = _offloaded(loaded)
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

    def statistics(self, linears: Collection[str], keep_inputs: bool = False) -> list[SharedStats]:
        """Return statistics of the inputs of ``linears``, which are in the current block."""
        collector = self._collector(linears, keep_inputs)
        for _ in self._run(collector):
            pass
        return collector.statistics()

    def advance(self, linears: Collection[str] = (), keep_inputs: bool = False) -> list[SharedStats]:
        """Return the same statistics, and pass the block's output on to the next block."""
        collector = self._collector(linears, keep_inputs)
        for index, output in enumerate(self._run(collector)):
            self.hidden[index] = output
        self.block += 1
        self._join()
        return collector.statistics()

    def folds(self, units: Sequence[Collection[str]]) -> dict[frozenset[str], Fold]:
        """Return where the input scales of ``units`` of the current block fold, by the linears that share the input.

        It is proved on an item of a pass of each kind: of what the block is called with, and whether it is given more tokens
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
                why = error  # Of an item perhaps because what looks like a batch is none.
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

    def _collector(self, linears: Collection[str], keep_inputs: bool) -> Collector:
        # Unless the yaml says otherwise, the masks are those that blocks are called with.
        masked = self._part.masked_linears if self._part.masked else dict.fromkeys(linears, False)
        return Collector(linears, masked, keep_inputs)

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
                others = [(None if slot is None else _argument(slot, args, kwargs), own) for slot, own in call.others]
                if mask is None and any(other is not None for _, other in others):
                    mask = torch.ones(hidden.shape[:-1], dtype=torch.bool)  # Marks its tokens, not the others'.
                collector.begin(mask, others)
                if isinstance(block, nn.Linear):
                    collector.receive(path, hidden)
                    yield self.hidden[place]
                    continue
                output = _first(block(*args, **kwargs))
                yield output.cpu() if self._away else output


def _first_items(items: int, batch: int, value: Tensor) -> Tensor:
    """Return the first ``items`` of a tensor for each of a ``batch``; other tensors as they are."""
    return value[:items] if value.dim() > 1 and len(value) == batch else value


def _kind(call: BlockCall, hidden: Tensor) -> Hashable:
    """Return what a call is of, apart from the number of its tokens."""

    def of(value: Any) -> Hashable:
        if isinstance(value, Tensor):
            return value.dim()
        if isinstance(value, int):
            return value, hidden.shape[-2] > value
        return type(value).__name__

    return tuple((slot, of(value)) for slot, value in _slots(call.args, call.kwargs)), hidden.dim()


def _argument(slot: Slot, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[slot] if isinstance(slot, int) else kwargs[slot]


def _first(output: Any) -> Any:
    """Return the hidden state in a block's output: all of it, or the first of several."""
    if isinstance(output, Mapping):
        return next(iter(output.values()))
    return output[0] if isinstance(output, (tuple, list)) else output


class Collector:
    """Sums of Gram matrices and magnitudes of the inputs of ``linears``, computed once per distinct input tensor.

    For linears in ``masked``, only tokens selected by the masks of the pass count; the value is true if a linear may
    receive only the last of the mask's tokens.
    """

    def __init__(
        self, linears: Collection[str], masked: Mapping[str, bool] | None = None, keep_inputs: bool = False
    ) -> None:
        self._linears, self._masked, self._keep_inputs = linears, masked or {}, keep_inputs
        self._sums: dict[str, _Sums] = {}
        self._leader: dict[str, str] = {}
        self._seen: list[tuple[Tensor, str]] = []
        self._mask: Tensor | None = None
        self._others: list[tuple[Tensor | None, Tensor | None]] = []

    def begin(self, mask: Tensor | None, others: Iterable[tuple[Tensor | None, Tensor | None]] = ()) -> None:
        """Begin a pass; ``mask`` ``[B, T]`` is true for tokens that count.

        ``others`` are further inputs ``[B, N, D]`` of the block, ``None`` if unknown, and their masks ``[B, N]``,
        ``None`` if all tokens count.
        """
        self._seen, self._mask, self._others = [], mask, list(others)

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as hooks:
            for name in self._linears:
                if experts.parse(name) is None:
                    handle = model.get_submodule(name).register_forward_pre_hook(self._hook(name))
                    hooks.callback(handle.remove)
            for path, names in experts.by_module(self._linears).items():
                held = experts.at(model, path)
                hook = self._experts_hook(path, held, names)
                hooks.callback(held.module.register_forward_hook(hook, with_kwargs=True).remove)
            yield
        self._seen, self._others = [], []

    def statistics(self) -> list[SharedStats]:
        return [
            SharedStats(
                tuple(name for name, first in self._leader.items() if first == leader), sums.mean(), sums.not_finite()
            )
            for leader, sums in self._sums.items()
            if sums.count
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, inputs: self.receive(name, inputs[0])

    def receive(self, name: str, x: Tensor) -> None:
        """Add the input ``x`` of ``name``, if that is one of the linears."""
        if name not in self._linears:
            return
        leader = next((first for seen, first in self._seen if seen is x), name)
        if self._leader.setdefault(name, leader) != leader:
            raise RuntimeError(f"{name} shares its input with {self._leader[name]} in one batch but not in another")
        if leader == name:
            self._seen.append((x, name))
            if name not in self._sums:
                self._sums[name] = _Sums(x, self._keep_inputs)
            self._sums[name].add(self._counting(x, name))

    def _experts_hook(self, path: str, held: experts.Experts, names: Sequence[str]) -> Callable[..., None]:
        """Return a hook that adds to each expert's sums the tokens routed to it; its slices are not checked twice."""
        wanted, checked = set(names), False

        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            nonlocal checked
            hidden, *rest = experts.arguments(args, kwargs)
            if not checked:
                held.check(path, hidden, rest, output)
                checked = True
            # Every expert is given tokens of the same batch; one of its names stands for all.
            tokens = hidden[: held.tokens(hidden)]
            counted = self._counted(tokens, names[0])
            second = any(f"{path}.{held.parameters[1]}[" in name for name in wanted)
            for one in held.routed(hidden, rest[0] if rest else None, counted, second):
                for parameter, x in one.inputs.items():
                    if (name := f"{path}.{parameter}[{one.index}]") in wanted:
                        self._leader.setdefault(name, name)
                        if name not in self._sums:
                            self._sums[name] = _Sums(x, self._keep_inputs, waiting_bytes=0)
                        self._sums[name].add(x)

        return keep

    def _counting(self, x: Tensor, name: str) -> Tensor:
        """Return the tokens ``[N, I]`` of ``x`` that count."""
        rows, counted = x.reshape(-1, x.shape[-1]), self._counted(x, name)
        return rows if counted is None else rows[counted]

    def _counted(self, x: Tensor, name: str) -> Tensor | None:
        """Return booleans ``[N]`` for the flattened tokens of ``x``, true for those that count; None if all do."""
        rows = x.reshape(-1, x.shape[-1])
        if name not in self._masked:
            return None
        at_the_end = self._masked[name]
        mask = self._mask_of(x, at_the_end)
        if mask is None:
            return None
        if at_the_end and x.dim() == 3 and x.shape[1] < mask.shape[1]:
            mask = mask[:, -x.shape[1] :]
        if mask.numel() != len(rows) or (x.dim() == 3 and len(mask) != len(x)):
            raise RuntimeError(
                f"{name}: its tokens {list(x.shape[:-1])} are not those of the attention mask {list(mask.shape)}; "
                "masked, in the model's yaml, names what of a block is given the tokens of the mask"
            )
        return mask.reshape(-1).to(rows.device)

    def _mask_of(self, x: Tensor, at_the_end: bool) -> Tensor | None:
        """Return the mask of ``x`` itself or of the only input with its tokens; otherwise that of the hidden state."""
        for other, mask in self._others:
            if x is other:
                return mask
        own, tokens = self._mask, x.shape[:-1]
        if own is not None and not at_the_end and tokens != own.shape:
            shapes = [(mask.shape if other is None else other.shape[:-1], mask) for other, mask in self._others]  # type: ignore[union-attr]
            alike = [mask for shape, mask in shapes if shape == tokens]
            if len(alike) == 1:
                return alike[0]
        return own


class _Sums:
    """Sums over the tokens of an input, in double precision.

    Only the lower triangle of the Gram matrix is stored, in panels of rows: half the arithmetic, and the memory of a
    whole matrix in single precision.
    """

    def __init__(self, x: Tensor, keep_inputs: bool, waiting_bytes: int | None = None) -> None:
        size = x.shape[-1]
        # Long single-precision sums lose the small eigenvalues that GPTQ depends on.
        dtype = torch.float32 if x.device.type == "mps" else torch.float64
        stops = [min(start + PANEL, size) for start in range(0, size, PANEL)]
        self._panels = [
            torch.zeros(stop - start, stop, dtype=dtype, device=x.device)
            for start, stop in zip(range(0, size, PANEL), stops, strict=True)
        ]
        self.magnitude = torch.zeros(size, dtype=dtype, device=x.device)
        self.count = 0
        self._not_finite = torch.zeros((), dtype=torch.int64, device=x.device)
        self._inputs: list[Tensor] | None = [] if keep_inputs else None
        # Pending tokens are copied, because an input may be changed in place later. They are summed once another batch of
        # this size might not fit.
        room = max(LEAST_TOKENS, (WAITING_BYTES if waiting_bytes is None else waiting_bytes) // (4 * size))
        batch = min(x.numel() // size, room, TOKENS_AT_ONCE)
        self._enough = min(TOKENS_AT_ONCE, room - batch + 1)
        self._waiting = torch.empty(self._enough + batch - 1, size, dtype=torch.float32, device=x.device)
        self._waiting_count = 0

    def add(self, tokens: Tensor) -> None:
        for rows in tokens.split(min(TOKENS_AT_ONCE, len(self._waiting))):
            if self._waiting_count + len(rows) > len(self._waiting):
                self._sum_up()
            self._waiting[self._waiting_count : self._waiting_count + len(rows)] = rows
            self._waiting_count += len(rows)
            if self._waiting_count >= self._enough:
                self._sum_up()
        self.count += len(tokens)

    def _sum_up(self) -> None:
        """Add the products of pending tokens: one pass over the sums for many batches."""
        if not self._waiting_count:
            return
        rows, self._waiting_count = self._waiting[: self._waiting_count], 0
        # Reuse a buffer for the products of all panels: fresh memory for each would cost as much as adding it.
        products = rows.new_empty(max(panel.numel() for panel in self._panels))
        for panel in self._panels:
            stop = panel.shape[1]
            product = products[: panel.numel()].view(panel.shape)
            own = rows[:, stop - len(panel) : stop]
            panel += torch.mm(own.T, rows[:, :stop], out=product)
            self.magnitude[stop - len(panel) : stop] += own.abs().sum(dim=0)
        if self._inputs is not None:
            self._inputs.append(rows.clone())
        self._not_finite += (~torch.linalg.vector_norm(rows, torch.inf, dim=1).isfinite()).sum()

    def mean(self) -> LayerStats:
        """Return the statistics; frees the sums panel by panel, so that there is no second matrix. Works only once."""
        self._sum_up()
        if not self._panels:
            raise RuntimeError("the sums of these tokens were given up for their statistics before")
        size = len(self.magnitude)
        self._waiting = self._waiting[:0].clone()  # Freed before the matrix is allocated.
        gram = torch.empty(size, size, dtype=torch.float32, device=self.magnitude.device)
        while self._panels:
            panel = self._panels.pop(0).div_(self.count)
            stop = panel.shape[1]
            start = stop - len(panel)
            rows = gram[start:stop, :stop].copy_(panel)
            rows[:, start:] = rows[:, start:].tril() + rows[:, start:].tril(-1).T
            gram[:start, start:stop] = rows[:, :start].T
        magnitude = (self.magnitude / self.count).float()
        return LayerStats(gram, magnitude, self.count, None if self._inputs is None else torch.cat(self._inputs))

    def not_finite(self) -> int:
        """Return the number of tokens that are not finite; valid before and after ``mean``."""
        self._sum_up()
        return int(self._not_finite)


class _Listener:
    """Recorder of the calls of a part's blocks during a forward pass of the model."""

    def __init__(self, part: Part, mask: Any, copy: Callable[[Any], Any], start: int) -> None:
        self.part = part
        self._forward_mask, self._copy, self._start = mask, copy, start
        self._around: dict[str, dict[str, Any]] = {}
        self._calls: list[_Call] = []
        self._output: tuple[Any, int] | None = None

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as hooks:
            if self.part.masked_linears:
                for path in {path for block in self.part.blocks for path in self._modules_around(block)}:
                    module = model.get_submodule(path)
                    hooks.callback(module.register_forward_pre_hook(self._begin(path), with_kwargs=True).remove)
            for index, path in enumerate(self.part.blocks):
                block = model.get_submodule(path)
                hooks.callback(block.register_forward_pre_hook(self._keeper(index), with_kwargs=True).remove)
                hooks.callback(block.register_forward_hook(self._end).remove)
            yield
        self._output = None

    def passes(self) -> list[Pass]:
        """Return the recorded calls, split at each call of the first block; RuntimeError if a block was skipped."""
        blocks = self.part.blocks
        for place, call in enumerate(self._calls):
            if call.block != place % len(blocks):
                raise RuntimeError(
                    f"{self.part.name}: {blocks[call.block]} was called where {blocks[place % len(blocks)]} was expected; "
                    "calibration needs blocks that are called one after the other, each of them in every pass"
                )
        if left := len(self._calls) % len(blocks):
            raise RuntimeError(f"{self.part.name}: a pass ended before {blocks[left]}; calibration needs all blocks")
        starts = range(0, len(self._calls), len(blocks))
        return [_one_pass(self._calls[start : start + len(blocks)]) for start in starts]

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

    def _begin(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._around[path] = _named_arguments(module, args, kwargs)

        return keep

    def _end(self, _block: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = _first(output)
        self._output = (hidden, _changes(hidden))

    def _keeper(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def keep(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            before, changes = self._output or (None, 0)
            slot = _hidden_slot(block, args, kwargs, before, self.part.blocks[index])
            hidden = _argument(slot, args, kwargs)
            follows = index > 0 and hidden is before and _changes(hidden) == changes
            named = _named_arguments(block, args, kwargs)
            mask = self._text_mask(index) if self.part.masked_linears else None
            if mask is None:
                mask = own_mask(named, hidden)
            others: list[tuple[Slot | None, Tensor | None]] = [
                (other, cross_mask(named, value))
                for other, value in _slots(args, kwargs)
                if other != slot and is_another_sequence(_name(block, other), value, hidden)
            ]
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
            call = BlockCall(slot, args, kwargs, joined if index else None, mask, tuple(others))
            self._calls.append(_Call(index, None if index else joined, call))

        return keep

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


@dataclass(frozen=True)
class _Call:
    """A block's call; ``first`` is its hidden state, stored for the first block only to save memory."""

    block: int
    first: Tensor | None
    call: BlockCall


def _one_pass(calls: Sequence[_Call]) -> Pass:
    first = calls[0].first
    assert first is not None
    return Pass(first, tuple(call.call for call in calls))


def _changes(tensor: Any) -> int:
    """Return how often a tensor was changed in place; 0 for inference tensors, which do not count changes."""
    return 0 if not isinstance(tensor, Tensor) or tensor.is_inference() else tensor._version


def _is_token_mask(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.dim() == 2


def _slots(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Slot, Any]]:
    return [*enumerate(args), *kwargs.items()]


def _named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return every argument of a call by name; positional ones without a name are left out."""
    return dict(zip(_positional_names(module), args, strict=False)) | kwargs


def _name(module: nn.Module, slot: Slot) -> str:
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


def _hidden_slot(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], before: Any, path: str) -> Slot:
    """Return the slot of a block's hidden state.

    It is the previous block's output if that is passed; otherwise the first positional argument, or the first suitable
    argument that the signature names. It is never the sequence that a decoder attends to, though its encoder may have
    returned that just before.
    """
    for slot, value in _slots(args, kwargs):
        if before is not None and value is before and not names_others(_name(block, slot)):
            return slot
    if args:
        return 0
    for name in [*inspect.signature(block.forward).parameters, *kwargs]:
        value = kwargs.get(name)
        if isinstance(value, Tensor) and value.dim() > 1 and value.is_floating_point() and not names_others(name):
            return name
    raise RuntimeError(f"{path}: none of its arguments ({', '.join(kwargs)}) is a hidden state")


def _offloaded(loaded: LoadedModel) -> bool:
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
        changes = _changes(tensor)
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
