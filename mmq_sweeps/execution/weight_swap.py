"""Quantized weights in a model's place, part by part: they stay until the part is asked for in another quantization."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from mmq_sweeps.methods.affine import QuantizedWeight
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.units import Dequantized


class WeightSwap:
    """What is in place in ``loaded``: of each part the key of its quantization; a part that is absent is at full precision."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._placed: dict[str, tuple[str, ExitStack]] = {}

    def put(self, part: str, key: str, weights: Mapping[str, QuantizedWeight]) -> None:
        """Put ``weights`` by linear, all that ``part`` has quantized, in place; ``key`` names them."""
        if self.holds(part, key, weights):
            return
        self.take_out(part)
        if weights:
            placed = ExitStack()
            placed.enter_context(self._loaded.weights_replaced(Dequantized(weights)))
            self._placed[part] = (key, placed)

    def holds(self, part: str, key: str, weights: Mapping[str, QuantizedWeight]) -> bool:
        """Whether ``put`` would have nothing to do."""
        return self._placed[part][0] == key if part in self._placed else not weights

    def take_out(self, part: str) -> None:
        """The full-precision weights of ``part`` are back, bit for bit."""
        if part in self._placed:
            self._placed.pop(part)[1].close()

    def restore(self) -> None:
        """The whole model is at full precision."""
        for part in list(self._placed):
            self.take_out(part)


@contextmanager
def put_when_called(loaded: LoadedModel, linears: Iterable[str], put: Callable[[], None]) -> Iterator[None]:
    """Call ``put`` before one of ``linears`` runs, however it is reached."""

    def before(*_: Any) -> None:
        put()

    with ExitStack() as hooks:
        for name in linears:
            hooks.callback(loaded.linear(name).register_forward_pre_hook(before).remove)
        yield
