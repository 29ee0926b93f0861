"""Swap quantized weights into a model, part by part; they stay until another quantization of the part is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

from torch import Tensor

from mmq_sweeps.methods.formats import QuantizedWeight
from mmq_sweeps.models.experts import module_of
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.stored_units import Dequantized


class WeightSwap:
    """The weights in place in ``loaded``: each part's quantization by its key; a part without a key is at full precision."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._placed: dict[str, tuple[str, ExitStack]] = {}

    def put(
        self,
        part: str,
        key: str,
        weights: Mapping[str, QuantizedWeight],
        dense: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Swap in ``weights`` by linear, everything quantized in ``part``; ``key`` names them.

        ``dense`` has the part's parameters, by name, that take other values with them.
        """
        if self.holds(part, key, weights):
            return
        self.take_out(part)
        if weights:
            placed = ExitStack()
            placed.enter_context(self._loaded.weights_replaced(Dequantized(weights), dense))
            self._placed[part] = (key, placed)

    def holds(self, part: str, key: str, weights: Mapping[str, QuantizedWeight]) -> bool:
        """Return True if ``put`` would have nothing to do."""
        return self._placed[part][0] == key if part in self._placed else not weights

    def take_out(self, part: str) -> None:
        """Put the full-precision weights of ``part`` back, bit for bit."""
        if part in self._placed:
            self._placed.pop(part)[1].close()

    def restore(self) -> None:
        """Put the whole model back to full precision."""
        for part in list(self._placed):
            self.take_out(part)


@contextmanager
def put_when_called(loaded: LoadedModel, names: Iterable[str], put: Callable[[], None]) -> Iterator[None]:
    """Call ``put`` before a linear, experts or another module of ``names`` runs, however it is reached."""

    def before(*_: Any) -> None:
        put()

    with ExitStack() as hooks:
        for path in dict.fromkeys(map(module_of, names)):
            hooks.callback(loaded.model.get_submodule(path).register_forward_pre_hook(before).remove)
        yield
