"""Cache a part's outputs on the evaluation data: computed once for each of its quantizations, then replayed.

Cells that quantize a part and every part before it alike call its module with the same inputs. Each call's output is cached
under a key of those quantizations, the batch sizes, the device and the releases, with a fingerprint of the inputs; if the
fingerprint differs, the part runs. So a model whose parts do not run in the order of its yaml is right as well, only not
quicker.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cachetools import LRUCache
from torch import Tensor, nn

from mmq_sweeps.errors import StoreError
from mmq_sweeps.execution.recorded_calls import Call, Watched, built, fingerprint, is_known
from mmq_sweeps.memory import keep
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.store import Store

logger = logging.getLogger(__name__)
# Calls that are kept together: one artifact for a small task, one of some hundred megabytes for a large one.
TOGETHER = 8


class OutputCache:
    """Recorded calls by key, ``TOGETHER`` at a time: in memory within ``max_bytes``, and in the store.

    They save time and nothing else, so a store without room for them costs one warning.
    """

    def __init__(self, store: Store, max_bytes: int) -> None:
        self._store = store
        self._cached: LRUCache[str, list[Call]] = LRUCache(max_bytes, _size)
        self._refused: set[str] = set()
        self._without_room: set[str] = set()
        self._full = False

    def read(self, key: str, number: int) -> list[Call]:
        """Return the calls from ``number * TOGETHER`` on; empty if they are not cached."""
        if key in self._refused:
            return []
        name = f"{key}-{number}"
        calls = self._cached.get(name)
        if calls is None:
            artifact = self._store.artifacts.load(ArtifactKind.OUTPUTS, name)
            calls = None if artifact is None else _unpacked(*artifact)
            if calls:
                keep(self._cached, name, calls)
        return calls or []

    def write(self, key: str, number: int, calls: Sequence[Call]) -> None:
        """Cache the calls from ``number * TOGETHER`` on."""
        name = f"{key}-{number}"
        size = _size(calls)
        keep(self._cached, name, list(calls))
        if self._full or key in self._without_room:
            return
        if not self._store.artifacts.eviction.room_for(size):
            if not self._without_room:
                logger.warning("store.max_gb leaves no room for outputs of parts; they are not stored")
            self._without_room.add(key)
            return
        tensors = {f"{place}.{own}": tensor for place, call in enumerate(calls) for own, tensor in call.tensors.items()}
        described = {"calls": [{"inputs": call.inputs, "form": call.form} for call in calls]}
        try:
            self._store.artifacts.save(ArtifactKind.OUTPUTS, name, tensors, described)
        except StoreError as error:
            self._full = True
            logger.warning("outputs of parts are not stored from here on: %s", error.strerror)

    def clear(self) -> None:
        """Empty the memory; the store has all of it."""
        self._cached.clear()

    def refuse(self, key: str) -> None:
        """Neither read nor write ``key`` in this process again: its outputs do not serve."""
        self._refused.add(key)

    def refused(self, key: str) -> bool:
        return key in self._refused


def _size(calls: Sequence[Call]) -> int:
    return sum(tensor.nbytes for call in calls for tensor in call.tensors.values())


def _unpacked(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> list[Call]:
    own: list[dict[str, Tensor]] = [{} for _ in described["calls"]]
    for name, tensor in tensors.items():
        place, _, inner = name.partition(".")
        own[int(place)][inner] = tensor
    calls = [Call(call["inputs"], call["form"], own[place]) for place, call in enumerate(described["calls"])]
    return calls if all(is_known(call.form) for call in calls) else []


class Player:
    """Stands in for the forward of one part's module during one evaluation.

    ``put`` swaps the part's weights in; it is called before the module runs, not for a replayed call. With ``record`` the
    module's outputs are cached in ``outputs``.
    """

    def __init__(self, outputs: OutputCache, key: str, put: Callable[[], None], record: bool) -> None:
        self.key, self.replayed = key, 0
        self._outputs, self._put = outputs, put
        self._record = record and not outputs.refused(key)
        self._number = 0
        self._stored = outputs.read(key, 0)
        self._calls: list[Call] = []
        self._last: Watched | None = None
        self._changed = False

    @property
    def begun(self) -> bool:
        """True if a call is cached, so that the part's weights are probably not needed."""
        return bool(self._stored)

    def call(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the output of ``forward``, replayed if it is cached."""
        inputs = fingerprint([args, kwargs])
        if inputs is None:
            self._put()
            return forward(*args, **kwargs)
        self._settle()
        place = len(self._calls)
        kept = self._stored[place] if place < len(self._stored) else None
        if kept is not None and kept.inputs == inputs and kept.form is not None:
            self.replayed += 1
            self._calls.append(kept)
            return built(kept.form, kept.tensors)
        if kept is not None:
            self._stop_recording()
        self._put()
        output = forward(*args, **kwargs)
        if self._record:
            self._last = Watched(inputs, output)
            if self._last.form is not None:
                self._changed = True
                return self._last.shown
            self._stop_recording()
        self._calls.append(Call(inputs, None, {}))
        return output

    def finish(self) -> None:
        """Cache the last calls; the evaluation is over."""
        self._settle()
        self._write()

    def _settle(self) -> None:
        """Record the previous call: a new one begins, so the model is done with its output."""
        if self._last is not None:
            self._calls.append(self._last.call())
            self._last = None
        if len(self._calls) == TOGETHER:
            self._write()
            self._number += 1
            self._stored = self._outputs.read(self.key, self._number)

    def _write(self) -> None:
        if self._changed and self._record:
            self._outputs.write(self.key, self._number, self._calls)
        self._calls, self._changed = [], False

    def _stop_recording(self) -> None:
        self._record, self._last = False, None
        self._outputs.refuse(self.key)


@contextmanager
def standing_in(module: nn.Module, player: Player) -> Iterator[None]:
    """Route calls of ``module`` through ``player`` while the context is open."""
    replaced = module.__dict__.get("forward")  # accelerate's, where it places weights
    forward = module.forward

    @functools.wraps(forward)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return player.call(forward, args, kwargs)

    module.forward = stand_in
    try:
        yield
    finally:
        if replaced is None:
            del module.forward
        else:
            module.forward = replaced
