"""Layer statistics, block by block.

One full-precision run over the calibration batches keeps what every part's blocks were called with. A part is then run
again block by block from the input of its first block, and only the block at hand has its statistics in memory. Linears
that are given the same tensor (query, key and value) share their statistics.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import recursively_apply, send_to_device
from torch import Tensor, nn
from transformers.cache_utils import Cache

from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.targets import Part

# Tokens whose products are summed in single precision before they are added to the sum in double precision: so many, or
# fewer where so many bytes hold fewer, but not so few that adding would take as long as multiplying.
TOKENS_AT_ONCE, WAITING_BYTES, LEAST_TOKENS = 4096, 2**23, 512
# Rows of a Gram matrix that are summed at a time.
PANEL = 256
BlockInputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class SharedStats:
    """The statistics of one input, the full names of the linears that it feeds, and how many tokens are not finite."""

    linears: tuple[str, ...]
    stats: LayerStats
    not_finite: int = 0


@dataclass(frozen=True)
class Pass:
    """One run through a part: ``hidden`` is its first block's input, ``rest`` all else that each block was called with.

    ``mask`` ``[B, T]`` is true where a token counts; ``None`` where all do. A forward pass of the model may run through a
    part several times: the Q-Former of a retriever, once for the image and once for the text.
    """

    hidden: Tensor
    mask: Tensor | None
    rest: tuple[BlockInputs, ...]


@torch.no_grad()
def capture(loaded: LoadedModel, parts: Iterable[Part], batches: Iterable[Mapping[str, Any]]) -> dict[str, list[Pass]]:
    """Run the model over ``batches`` once, and keep every pass through ``parts``."""
    parts = list(parts)
    passes: dict[str, list[Pass]] = {part.name: [] for part in parts}
    for batch in batches:
        inputs = loaded.to_device(batch)
        move = _mover(loaded)
        with ExitStack() as hooks:
            listeners = [_Listener(part, inputs.get("attention_mask"), move) for part in parts]
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
    """The statistics at full-precision inputs of the linears ``wanted``, block by block; blocks without one are left out."""
    replay = Replay(loaded, part, passes)
    by_block = [_inside(path, wanted) for path in part.blocks]
    last = max((index for index, names in enumerate(by_block) if names), default=-1)
    for index, names in enumerate(by_block[: last + 1]):
        found = replay.advance(names, keep_inputs)
        if names:
            yield index, found


def _inside(path: str, names: Collection[str]) -> list[str]:
    return [name for name in names if name.startswith(f"{path}.")]


class Replay:
    """A part that is run block by block over ``passes``; ``hidden`` is what the block at hand is given in each."""

    def __init__(self, loaded: LoadedModel, part: Part, passes: Sequence[Pass]) -> None:
        self._loaded, self._part, self._passes = loaded, part, passes
        self._away = _offloaded(loaded)
        self.hidden = [one.hidden for one in passes]
        self.block = 0

    def statistics(self, linears: Collection[str], keep_inputs: bool = False) -> list[SharedStats]:
        """Statistics of the inputs of ``linears``, which lie in the block at hand."""
        collector = Collector(linears, self._part.masked_linears, keep_inputs)
        for _ in self._run(collector):
            pass
        return collector.statistics()

    def advance(self, linears: Collection[str] = (), keep_inputs: bool = False) -> list[SharedStats]:
        """The same, and what the block gives goes into the next one."""
        collector = Collector(linears, self._part.masked_linears, keep_inputs)
        for index, output in enumerate(self._run(collector)):
            self.hidden[index] = output
        self.block += 1
        return collector.statistics()

    @torch.no_grad()
    def _run(self, collector: Collector) -> Iterator[Tensor]:
        path = self._part.blocks[self.block]
        block = self._loaded.model.get_submodule(path)
        with self._loaded.placed(path), collector.listening(self._loaded.model):
            for place, one in enumerate(self._passes):
                inputs: Any = (self.hidden[place], one.mask, *one.rest[self.block])
                if self._away:
                    inputs = send_to_device(inputs, self._loaded.device)
                hidden, mask, args, kwargs = inputs
                collector.begin(mask)
                output = block(hidden, *args, **kwargs)
                output = output[0] if isinstance(output, tuple) else output
                yield output.cpu() if self._away else output


class Collector:
    """Sums Gram matrices and magnitudes of the inputs of ``linears``, once a distinct input tensor.

    Of the linears among ``masked`` only the tokens count that the pass's attention mask leaves; it is true for every
    token of the part, or for those of its end where a linear sees only these.
    """

    def __init__(
        self, linears: Collection[str], masked: Mapping[str, bool] | None = None, keep_inputs: bool = False
    ) -> None:
        self._linears, self._masked, self._keep_inputs = linears, masked or {}, keep_inputs
        self._sums: dict[str, _Sums] = {}
        self._leader: dict[str, str] = {}
        self._seen: list[tuple[Tensor, str]] = []
        self._mask: Tensor | None = None

    def begin(self, mask: Tensor | None) -> None:
        """A new pass begins; ``mask`` ``[B, T]`` is true where a token counts."""
        self._seen, self._mask = [], mask

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as hooks:
            for name in self._linears:
                handle = model.get_submodule(name).register_forward_pre_hook(self._hook(name))
                hooks.callback(handle.remove)
            yield
        self._seen = []

    def statistics(self) -> list[SharedStats]:
        return [
            SharedStats(
                tuple(name for name, first in self._leader.items() if first == leader), sums.mean(), sums.not_finite()
            )
            for leader, sums in self._sums.items()
            if sums.count
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            leader = next((first for seen, first in self._seen if seen is x), name)
            if self._leader.setdefault(name, leader) != leader:
                raise RuntimeError(f"{name} shares its input with {self._leader[name]} in one batch but not in another")
            if leader == name:
                self._seen.append((x, name))
                if name not in self._sums:
                    self._sums[name] = _Sums(x, self._keep_inputs)
                self._sums[name].add(self._counting(x, name))

        return keep

    def _counting(self, x: Tensor, name: str) -> Tensor:
        """The tokens ``[N, I]`` of ``x`` that count."""
        rows = x.reshape(-1, x.shape[-1])
        mask = self._mask
        if mask is None or name not in self._masked:
            return rows
        at_the_end = self._masked[name]
        if at_the_end and x.dim() == 3 and x.shape[1] < mask.shape[1]:
            mask = mask[:, -x.shape[1] :]
        if mask.numel() != len(rows) or (x.dim() == 3 and len(mask) != len(x)):
            raise RuntimeError(
                f"{name}: its tokens {list(x.shape[:-1])} are not those of the attention mask {list(mask.shape)}; "
                "masked, in the model's yaml, names what of a block is given the tokens of the mask"
            )
        return rows[mask.reshape(-1).to(rows.device)]


class _Sums:
    """Sums over the tokens of one input, in double precision.

    Of the Gram matrix only what lies on and left of the diagonal is kept, in panels of rows: half the arithmetic, and the
    memory of a whole matrix in single precision.
    """

    def __init__(self, x: Tensor, keep_inputs: bool) -> None:
        size = x.shape[-1]
        # A long run of single-precision sums loses the small eigenvalues that GPTQ lives on.
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
        # Copies of the tokens that wait: what a linear was given may be changed in place behind it. They are enough once
        # another batch like this one might not find room.
        room = max(LEAST_TOKENS, WAITING_BYTES // (4 * size))
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
        """Add the products of the tokens that wait: one pass over the sums for many batches."""
        if not self._waiting_count:
            return
        rows, self._waiting_count = self._waiting[: self._waiting_count], 0
        # One piece of memory for the products of all panels: fresh memory for each would cost as much as adding it.
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
        """The statistics; the sums are given up for them, panel by panel, so that there is no second matrix."""
        self._sum_up()
        if not self._panels:
            raise RuntimeError("the sums of these tokens were given up for their statistics before")
        size = len(self.magnitude)
        self._waiting = self._waiting[:0].clone()  # Its memory goes before the matrix comes.
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
        """How many tokens are not finite; before ``mean`` as well as after it."""
        self._sum_up()
        return int(self._not_finite)


class _Listener:
    """Hears the calls of one part's blocks during one forward pass of the model."""

    def __init__(self, part: Part, mask: Any, move: Callable[[Any], Any]) -> None:
        self.part = part
        self._forward_mask, self._mask, self._move = mask, mask, move
        self._calls: list[_Call] = []

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as hooks:
            if self.part.masked_linears:
                part = model.get_submodule(self.part.module)
                hooks.callback(part.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            for index, path in enumerate(self.part.blocks):
                block = model.get_submodule(path)
                hooks.callback(block.register_forward_pre_hook(self._keeper(index), with_kwargs=True).remove)
            yield

    def passes(self) -> list[Pass]:
        """The calls heard, split where the first block was called again; an error where a block was left out."""
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

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        mask = kwargs.get("attention_mask", named.get("attention_mask"))
        # A part that is called without a mask has no padding; one that is called with its layers' own form of it
        # (by kind of attention, or a value for each pair of tokens) has that of the forward pass.
        self._mask = mask if mask is None or _is_token_mask(mask) else self._forward_mask

    def _keeper(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def keep(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, args, kwargs = _split_hidden(args, kwargs)
            # A cache would grow with every replay; calibration never decodes, so it is left out.
            kwargs = {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}
            first = None
            if index == 0:
                mask = self._mask.bool() if self.part.masked_linears and _is_token_mask(self._mask) else None
                first = self._move((hidden, mask))
            self._calls.append(_Call(index, first, self._move((args, kwargs))))

        return keep


@dataclass(frozen=True)
class _Call:
    """``first`` is the hidden state and the mask, kept of the first block only: the rest would be all of a model's."""

    block: int
    first: tuple[Tensor, Tensor | None] | None
    rest: BlockInputs


def _one_pass(calls: Sequence[_Call]) -> Pass:
    first = calls[0].first
    assert first is not None
    return Pass(*first, tuple(call.rest for call in calls))


def _is_token_mask(mask: Any) -> bool:
    return isinstance(mask, Tensor) and mask.dim() == 2


def _split_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], (), {name: value for name, value in kwargs.items() if name != "hidden_states"}


def _offloaded(loaded: LoadedModel) -> bool:
    """Whether some weights lie off the computing device, so that activations should not fill it either."""
    return any(parameter.device.type == "meta" for parameter in loaded.model.parameters())


def _mover(loaded: LoadedModel) -> Callable[[Any], Any]:
    """Takes tensors, however nested, to the CPU where the model is offloaded; one tensor becomes one copy."""
    if not _offloaded(loaded):
        return lambda value: value
    # With the original, whose id would else be given to another tensor.
    copies: dict[int, tuple[Tensor, Tensor]] = {}

    def copy(tensor: Tensor) -> Tensor:
        return copies.setdefault(id(tensor), (tensor, tensor.cpu()))[1]

    return lambda value: recursively_apply(copy, value)
