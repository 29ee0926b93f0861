"""Watch the modules of a model while it runs: which are called, which values are not finite, where image features go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmq_sweeps.grouping import grouped
from mmq_sweeps.models.device_map import onloaded
from mmq_sweeps.models.experts import module_of


class Misplaced(ValueError):
    """The number of places for image features is not that of the features."""

    def __init__(self, places: int, features: int) -> None:
        super().__init__(f"{places} image placeholders for {features} image features")
        self.places, self.features = places, features


class Filled(TorchFunctionMode):
    """Counter of image features written into embedded text: ``places`` ``[B]`` is their number per row.

    Every family of transformers writes them by ``masked_scatter``, which silently accepts too few places. Most families
    compare the sums over a batch first; BLIP-2 does not. A wrong number raises ``Misplaced``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[int] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") == "masked_scatter":
            self._note(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _note(self, embedded: Tensor, mask: Tensor, source: Tensor) -> None:
        if embedded.dim() != 3 or not embedded.is_floating_point():
            return
        rows = mask.any(dim=-1).sum(dim=-1).tolist()
        features = source.numel() // embedded.shape[-1]
        if sum(rows) != features:
            raise Misplaced(sum(rows), features)
        self.places = [sum(pair) for pair in zip(self.places, rows, strict=True)] if self.places else rows


@contextmanager
def called(model: nn.Module, names: Collection[str]) -> Iterator[set[str]]:
    """Collect those of ``names`` whose modules run inside the context; experts run together."""
    reached: set[str] = set()

    def note(own: list[str]) -> Callable[[nn.Module, Any], None]:
        return lambda _module, _inputs: reached.update(own)

    with ExitStack() as hooks:
        for path, own in grouped(names, module_of).items():
            hooks.enter_context(model.get_submodule(path).register_forward_pre_hook(note(own)))
        yield reached


def weights_not_finite(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        with onloaded(module):
            for name, parameter in module.named_parameters(recurse=False):
                if not bool(parameter.isfinite().all()):
                    yield f"{path}.{name}" if path else name


def first_not_finite(model: nn.Module, run: Callable[[], object]) -> str:
    """Run the model; return the path of the first module that returns a value that is not finite, or "the model"."""
    found: list[str] = []

    def note(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                found.append(path)

        return hook

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            hooks.callback(module.register_forward_hook(note(path)).remove)
        run()
    return next(filter(None, found), "the model")  # the path of the model itself is empty
