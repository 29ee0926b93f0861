"""Cache a part's outputs on the evaluation data: computed once for each of its quantizations, then replayed.

Cells that quantize a part and every part before it alike call its module with the same inputs. Each call's output is cached
under a key of those quantizations, the batch sizes, the device and the releases, with a fingerprint of the inputs; if the
fingerprint differs, the part runs. So a model whose parts do not run in the order of its yaml is right as well, only not
quicker.

A call is replayed only if its inputs are tensors and plain values (a decoder's cache is neither), and its output consists
of tensors, tuples and output classes of transformers.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, SupportsIndex, overload

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from mmq_sweeps.errors import StoreError
from mmq_sweeps.memory import cache, keep
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.store import Store

logger = logging.getLogger(__name__)
# Calls that are kept together: one artifact for a small task, one of some hundred megabytes for a large one.
TOGETHER = 8
# Values of each input tensor that its fingerprint holds, evenly spread over it.
SAMPLED = 4096
PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Call:
    """A recorded call of a part: the fingerprint of its inputs, and its output as JSON that names ``tensors``."""

    inputs: str
    form: Any
    tensors: Mapping[str, Tensor]


class OutputCache:
    """Recorded calls by key, ``TOGETHER`` at a time: in memory within ``max_bytes``, and in the store.

    They save time and nothing else, so a store without room for them costs one warning.
    """

    def __init__(self, store: Store, max_bytes: int) -> None:
        self._store = store
        self._cached: MutableMapping[str, list[Call]] = cache(max_bytes, _size)
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
            artifact = self._store.artifact(ArtifactKind.OUTPUTS, name)
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
        if not self._store.room_for(size):
            if not self._without_room:
                logger.warning("store.max_gb leaves no room for outputs of parts; they are not stored")
            self._without_room.add(key)
            return
        tensors = {f"{place}.{own}": tensor for place, call in enumerate(calls) for own, tensor in call.tensors.items()}
        described = {"calls": [{"inputs": call.inputs, "form": call.form} for call in calls]}
        try:
            self._store.save_artifact(ArtifactKind.OUTPUTS, name, tensors, described)
        except StoreError as error:
            self._full = True
            logger.warning("outputs of parts are not stored from here on: %s", error.strerror)

    def clear(self) -> None:
        """Forget what is in memory; the store has it."""
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
    return calls if all(_known(call.form) for call in calls) else []


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
        self._last: _Watched | None = None
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
            self._last = _Watched(inputs, output)
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


def fingerprint(inputs: Any) -> str | None:
    """Hash the inputs: shape, dtype and sampled values of tensors, values of plain types. None if unsupported."""
    found = hashlib.sha256()
    return found.hexdigest()[:32] if _add(inputs, found.update) else None


def _add(value: Any, add: Callable[[Any], None]) -> bool:
    if isinstance(value, Tensor):
        add(f"{value.dtype}{list(value.shape)}".encode())
        flat = value.detach().reshape(-1)
        # An odd step, so that all columns of a matrix have their turn.
        sample = flat[:: (len(flat) // SAMPLED) | 1].cpu().contiguous()
        add(sample.view(torch.uint8).numpy().data)
        return True
    if isinstance(value, PLAIN):
        add(repr(value).encode())
        return True
    if type(value) in (tuple, list):
        add(f"{type(value).__name__}{len(value)}".encode())
        return all(_add(one, add) for one in value)
    if type(value) is dict:
        add(f"dict{list(value)}".encode())
        return all(_add(one, add) for one in value.values())
    return False


class _Watched:
    """Watches an output on its way to the model, to record only those tensors of its tuples that the model reads.

    A vision tower that is asked for all hidden states returns a tensor for every layer; most models read a single layer's.
    """

    def __init__(self, inputs: str, output: Any) -> None:
        self._inputs = inputs
        self._tensors: dict[str, Tensor] = {}
        self._looked: dict[str, _LookedAt] = {}
        self.shown = output
        try:
            self.form = self._top(output)
        except TypeError:
            self.form = None

    def call(self) -> Call:
        for name, looked in self._looked.items():
            entries = [self._tensor(f"{name}.{place}", one) for place, one in enumerate(looked.kept)]
            self.form["fields"][name] = {"tuple": entries}
        return Call(self._inputs, self.form, self._tensors)

    def _top(self, output: Any) -> Any:
        if not isinstance(output, ModelOutput):
            return self._of(output, "0")
        fields, shown = {}, {}
        for name, value in output.items():
            if type(value) is tuple and len(value) > 1 and all(isinstance(one, Tensor) for one in value):
                shown[name] = self._looked[name] = _LookedAt(value)
            else:
                shown[name], fields[name] = value, self._of(value, name)
        self.shown = type(output)(**shown)
        return {"class": f"{type(output).__module__}.{type(output).__qualname__}", "fields": fields}

    def _of(self, value: Any, name: str) -> Any:
        if isinstance(value, Tensor) and not _expanded(value):
            return self._tensor(name, _copied(value))
        if isinstance(value, PLAIN):
            return {"value": value}
        if type(value) is tuple:
            return {"tuple": [self._of(one, f"{name}.{place}") for place, one in enumerate(value)]}
        raise TypeError(type(value).__name__)

    def _tensor(self, name: str, copied: _Copied | None) -> Any:
        if copied is None:
            return {"unused": True}
        self._tensors[name] = copied.tensor
        return {"tensor": name, "device": copied.device, "stride": list(copied.stride)}


@dataclass(frozen=True)
class _Copied:
    tensor: Tensor
    device: str
    stride: tuple[int, ...]


def _copied(tensor: Tensor) -> _Copied:
    """Copy a tensor to the CPU, with the strides of the original, which decide the order of sums."""
    copy = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return _Copied(copy, str(tensor.device), tensor.stride())


def _expanded(tensor: Tensor) -> bool:
    """Return True if elements of ``tensor`` share memory, so that no copy has its strides."""
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


class _LookedAt(tuple[Tensor, ...]):
    """A tuple that copies each of its tensors when it is first read."""

    kept: list[_Copied | None]

    def __new__(cls, values: Sequence[Tensor]) -> _LookedAt:
        made = super().__new__(cls, values)
        made.kept = [None] * len(values)
        return made

    @overload
    def __getitem__(self, place: SupportsIndex) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Tensor, ...]: ...
    def __getitem__(self, place: Any) -> Any:
        for one in range(len(self))[place] if isinstance(place, slice) else [range(len(self))[place]]:
            tensor = super().__getitem__(one)
            if self.kept[one] is None and not _expanded(tensor):
                self.kept[one] = _copied(tensor)
        return super().__getitem__(place)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(len(self)))


def built(form: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Build the output that ``form`` describes, from fresh tensors that may be changed; an entry never read is None."""
    if "class" in form:
        fields = {name: built(field, tensors) for name, field in form["fields"].items()}
        return _output_class(form["class"])(**fields)  # type: ignore[misc]
    if "tensor" in form:
        kept, stride = tensors[form["tensor"]], tuple(form["stride"])
        made = torch.empty_strided(kept.shape, stride, dtype=kept.dtype, device=form["device"])
        return made.copy_(kept)
    if "tuple" in form:
        return tuple(built(one, tensors) for one in form["tuple"])
    return form.get("value")


def _known(form: Any) -> bool:
    return "class" not in form or _output_class(form["class"]) is not None


def _output_class(path: str) -> type[ModelOutput] | None:
    """Return an output class of transformers that is imported already; a name in a store never causes an import."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None) if module.startswith("transformers.") else None
    return found if isinstance(found, type) and issubclass(found, ModelOutput) else None
