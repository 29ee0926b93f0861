"""Layer statistics, block by block, at full-precision inputs.

One full-precision pass over the calibration batches keeps what every part's blocks were called with. A part is then run
again block by block from the input of its first block, and only the block at hand has its statistics in memory. Linears
that are given the same tensor (query, key and value) share their statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.targets import Part


@dataclass(frozen=True)
class SharedStats:
    """The statistics of one input, and the full names of the linears that it feeds."""

    linears: tuple[str, ...]
    stats: LayerStats


@dataclass
class BlockCalls:
    """What one part's blocks were called with: ``hidden`` is the first block's input, one a batch; ``rest`` all else."""

    hidden: list[Tensor] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    rest: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = field(default_factory=list)


@torch.no_grad()
def capture(
    loaded: LoadedModel, parts: Iterable[Part], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, BlockCalls]:
    """Run the model over ``batches`` once, and keep the calls of every block of ``parts``."""
    parts = list(parts)
    calls = {part.name: BlockCalls() for part in parts}
    for batch in batches:
        inputs = loaded.to_device(batch)
        with ExitStack() as hooks:
            for part in parts:
                mask = inputs["attention_mask"].bool() if part.masked else None
                hooks.enter_context(_calls_kept(loaded.model, part, calls[part.name], mask))
            loaded.model(**inputs, use_cache=False)
    return calls


def block_statistics(
    model: nn.Module, part: Part, calls: BlockCalls, wanted: Callable[[int], bool]
) -> Iterator[tuple[int, list[SharedStats]]]:
    """The statistics of every ``wanted`` block of ``part``, in order, one block at a time. Uses up ``calls.hidden``."""
    last = max((index for index in range(len(part.blocks)) if wanted(index)), default=-1)
    for index, path in enumerate(part.blocks[: last + 1]):
        block = model.get_submodule(path)
        collector = Collector()
        with ExitStack() as hooks, torch.no_grad():
            if wanted(index):
                hooks.enter_context(collector.listening(block, path))
            for batch, hidden in enumerate(calls.hidden):
                args, kwargs = calls.rest[batch][index]
                collector.begin(calls.masks[batch])
                output = block(hidden, *args, **kwargs)
                calls.hidden[batch] = output[0] if isinstance(output, tuple) else output
        if wanted(index):
            yield index, collector.statistics()


class Collector:
    """Sums Gram matrices and magnitudes of the inputs of a block's linears, once a distinct input tensor."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}
        self._leader: dict[str, str] = {}
        self._seen: list[tuple[Tensor, str]] = []
        self._mask: Tensor | None = None

    def begin(self, mask: Tensor | None) -> None:
        """A new batch begins; ``mask`` ``[B, T]`` is true where a token counts."""
        self._seen, self._mask = [], mask

    @contextmanager
    def listening(self, block: nn.Module, path: str) -> Iterator[None]:
        with ExitStack() as hooks:
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear):
                    handle = module.register_forward_pre_hook(self._hook(f"{path}.{name}"))
                    hooks.callback(handle.remove)
            yield
        self._seen = []

    def statistics(self) -> list[SharedStats]:
        return [
            SharedStats(tuple(name for name, first in self._leader.items() if first == leader), sums.mean())
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
                self._sums.setdefault(name, _Sums(x)).add(x, self._mask)

        return keep


class _Sums:
    def __init__(self, x: Tensor) -> None:
        size = x.shape[-1]
        # Double precision: a long run of single-precision sums loses the small eigenvalues that GPTQ lives on.
        dtype = torch.float32 if x.device.type == "mps" else torch.float64
        self.gram = torch.zeros(size, size, dtype=dtype, device=x.device)
        self.magnitude = torch.zeros(size, dtype=dtype, device=x.device)
        self.count = 0

    def add(self, x: Tensor, mask: Tensor | None) -> None:
        rows = x.reshape(-1, x.shape[-1])
        if mask is not None:
            rows = rows[mask.reshape(-1)]
        rows = rows.float()
        self.gram += rows.T @ rows
        self.magnitude += rows.abs().sum(dim=0)
        self.count += rows.shape[0]

    def mean(self) -> LayerStats:
        return LayerStats((self.gram / self.count).float(), (self.magnitude / self.count).float(), self.count)


@contextmanager
def _calls_kept(model: nn.Module, part: Part, calls: BlockCalls, mask: Tensor | None) -> Iterator[None]:
    kept: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, args, kwargs = _split_hidden(args, kwargs)
        if not kept:
            calls.hidden.append(hidden)
        # A cache would grow with every replay; calibration never decodes, so it is left out.
        kept.append((args, {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}))

    with ExitStack() as hooks:
        for path in part.blocks:
            handle = model.get_submodule(path).register_forward_pre_hook(keep, with_kwargs=True)
            hooks.callback(handle.remove)
        yield
    if len(kept) != len(part.blocks):
        raise RuntimeError(
            f"{part.name}: {len(kept)} calls of {len(part.blocks)} blocks in one forward pass; expected one each"
        )
    calls.rest.append(kept)
    calls.masks.append(mask)


def _split_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], (), {name: value for name, value in kwargs.items() if name != "hidden_states"}
