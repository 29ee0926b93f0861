"""Sum the inputs of linears while a block runs, once per distinct input tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from mmq_sweeps.models import experts
from mmq_sweeps.quantization.calibration.sums import Sums
from mmq_sweeps.quantization.shared_stats import SharedStats, TokenKinds
from mmq_sweeps.quantization.vision_tokens import KINDS, PADDING, TEXT, VISION


class Collector:
    """Sums of Gram matrices and magnitudes of the inputs of ``linears``, computed once per distinct input tensor.

    For linears in ``masked``, only tokens selected by the masks of the pass count; the value is true if a linear may
    receive only the last of the mask's tokens. With ``by_kind``, vision and text tokens are also summed apart where a mask
    tells them apart (``vision_tokens.py``); the sums of all tokens are the same, bit for bit.
    """

    def __init__(
        self,
        linears: Collection[str],
        masked: Mapping[str, bool] | None = None,
        keep_inputs: bool = False,
        by_kind: bool = False,
    ) -> None:
        self._linears, self._masked, self._keep_inputs, self._by_kind = linears, masked or {}, keep_inputs, by_kind
        self._sums: dict[str, Sums] = {}
        self._kinds: dict[str, dict[int, Sums]] = {}
        self._leader: dict[str, str] = {}
        self._seen: list[tuple[Tensor, str]] = []
        self._mask: Tensor | None = None
        self._others: list[tuple[Tensor | None, Tensor | None]] = []

    def begin(self, mask: Tensor | None, others: Iterable[tuple[Tensor | None, Tensor | None]] = ()) -> None:
        """Begin a pass; ``mask`` ``[B, T]`` is true for tokens that count, or has their kinds.

        ``others`` are further inputs ``[B, N, D]`` of the block, ``None`` if unknown, and their masks ``[B, N]``,
        ``None`` if all tokens count.
        """
        self._seen, self._mask, self._others = [], mask, list(others)

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as hooks:
            for name in self._linears:
                if experts.parse(name) is None:
                    hooks.enter_context(
                        model.get_submodule(name).register_forward_pre_hook(partial(self._listen, name))
                    )
            for path, names in experts.by_module(self._linears).items():
                held = experts.at(model, path)
                hook = self._experts_hook(path, held, names)
                hooks.callback(held.module.register_forward_hook(hook, with_kwargs=True).remove)
            yield
        self._seen, self._others = [], []

    def statistics(self) -> list[SharedStats]:
        return [
            SharedStats(
                tuple(name for name, first in self._leader.items() if first == leader),
                sums.mean(),
                sums.not_finite(),
                kinds=self._kinds_of(leader),
            )
            for leader, sums in self._sums.items()
            if sums.count
        ]

    def _kinds_of(self, leader: str) -> TokenKinds | None:
        """Return the statistics of vision and text tokens apart; None if one of them is missing."""
        found = self._kinds.pop(leader, {})
        if set(found) != {TEXT, VISION}:
            return None
        if (apart := sum(sums.count for sums in found.values())) != self._sums[leader].count:
            raise RuntimeError(
                f"{leader}: of {self._sums[leader].count} tokens only {apart} are known to be vision or text"
            )
        return TokenKinds(found[VISION].mean(), found[TEXT].mean())

    def _listen(self, name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.receive(name, inputs[0])

    def receive(self, name: str, x: Tensor) -> None:
        """Add the input ``x`` of ``name``, if that is one of the linears."""
        if name not in self._linears:
            return
        leader = next((first for seen, first in self._seen if seen is x), name)
        if self._leader.setdefault(name, leader) != leader:
            raise RuntimeError(f"{name} shares its input with {self._leader[name]} in one batch but not in another")
        if leader == name:
            self._seen.append((x, name))
            rows, counted = x.reshape(-1, x.shape[-1]), self._counted(x, name)
            self._add(name, x, rows if counted is None else rows[counted.bool()], counted)

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
            kept = None if counted is None else counted.bool()
            for one in held.routed(hidden, rest[0] if rest else None, kept, second):
                for parameter, x in one.inputs.items():
                    if (name := f"{path}.{parameter}[{one.index}]") in wanted:
                        self._leader.setdefault(name, name)
                        self._add(name, x, x, None if counted is None else counted[one.rows], waiting_bytes=0)

        return keep

    def _add(
        self, name: str, x: Tensor, rows: Tensor, counted: Tensor | None, waiting_bytes: int | None = None
    ) -> None:
        """Add ``rows`` ``[N, I]``, the tokens of the input ``x`` that count; ``counted`` is as ``_counted`` returns it."""
        if name not in self._sums:
            self._sums[name] = Sums(x, self._keep_inputs, waiting_bytes)
        self._sums[name].add(rows)
        if not self._by_kind or counted is None or counted.dtype != KINDS:
            return
        kinds, sums = counted[counted != PADDING], self._kinds.setdefault(name, {})
        for kind in (TEXT, VISION):
            if len(own := rows[kinds == kind]):
                if kind not in sums:
                    sums[kind] = Sums(x, keep_inputs=False, waiting_bytes=waiting_bytes)
                sums[kind].add(own)

    def _counted(self, x: Tensor, name: str) -> Tensor | None:
        """Return the mask ``[N]`` of the flattened tokens of ``x``, their kinds if it tells them; None if all count."""
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
