"""Record a call of a part: the fingerprint of its inputs, and its output, which can be built again.

A call is recorded only if its inputs are tensors and plain values (a decoder's cache is neither), and its output consists
of tensors, tuples and output classes of transformers.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, overload

import torch
from torch import Tensor
from transformers.utils import ModelOutput

# Values of each input tensor that its fingerprint holds, evenly spread over it.
SAMPLED = 4096
PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Call:
    """A recorded call of a part: the fingerprint of its inputs, and its output as JSON that names ``tensors``."""

    inputs: str
    form: Any
    tensors: Mapping[str, Tensor]


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


class Watched:
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


def is_known(form: Any) -> bool:
    return "class" not in form or _output_class(form["class"]) is not None


def _output_class(path: str) -> type[ModelOutput] | None:
    """Return an output class of transformers that is imported already; a name in a store never causes an import."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None) if module.startswith("transformers.") else None
    return found if isinstance(found, type) and issubclass(found, ModelOutput) else None
