"""Put other values in place of a module's offloaded weights, which are read whenever it runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from mmq_sweeps.memory import Computed
from mmq_sweeps.models import experts
from mmq_sweeps.models.device_map import offloading_hooks

# From a parameter's name and its own offloaded value, read when asked for, to the value in its place.
Replacement = Callable[[str, Callable[[], Tensor]], Tensor]


def replaced_by(weights: Mapping[str, Tensor], name: str) -> Replacement:
    return lambda key, own: weights[name] if key == "weight" else own()


def replaced_parameters(path: str, dense: Mapping[str, Tensor]) -> Replacement:
    return lambda key, own: dense[name] if (name := f"{path}.{key}") in dense else own()


def replaced_slices(module: nn.Module, names: Collection[str], weights: Mapping[str, Tensor]) -> Replacement:
    return lambda key, own: experts.with_slices(module, key, own(), names, weights)


@contextmanager
def read_instead(module: nn.Module, replacement: Replacement) -> Iterator[None]:
    """Bring the values of ``replacement`` to the computing device whenever an offloaded weight of ``module`` is requested."""
    hooks = offloading_hooks(module)
    kept = [hook.weights_map for hook in hooks]
    try:
        for hook in hooks:
            hook.weights_map = _overlaid(hook.weights_map, replacement)
        yield
    finally:
        for hook, weights_map in zip(hooks, kept, strict=True):
            hook.weights_map = weights_map


def _overlaid(own: Mapping[str, Tensor], replacement: Replacement) -> Computed[Tensor]:
    """Return a module's offloaded tensors as ``replacement`` changes them, read on each access."""
    return Computed(own, lambda key: replacement(key, lambda: own[key]))
