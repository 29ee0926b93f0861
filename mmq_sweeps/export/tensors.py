"""The tensors of an exported checkpoint: their names, dtypes and shapes, then one after another their values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

from mmq_sweeps.export import stored_names
from mmq_sweeps.export.choice import Choice
from mmq_sweeps.export.formats.base import TensorSpec
from mmq_sweeps.export.weights import CellWeights
from mmq_sweeps.models import experts
from mmq_sweeps.models.device_map import onloaded
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.stored_units import Dequantized


class InexactError(ValueError):
    """A weight that a format cannot hold exactly."""


class ExportedTensors:
    """The tensors of a checkpoint as in ``choice`` of ``loaded`` with ``weights`` in place; at most one layer is in memory.

    Linears are packed if the format does that; embeddings and experts are dense, with the values that were measured.
    The dtype chosen is that of dense tensors which have the model's dtype; others keep their own.
    """

    def __init__(self, loaded: LoadedModel, weights: CellWeights, choice: Choice) -> None:
        self.loaded, self.weights, self.choice, self.format = loaded, weights, choice, choice.format
        self.model_dtype = getattr(torch, loaded.config["dtype"])
        self.dtype = choice.dtype
        self.quantized = weights.specs
        self.dense = weights.dense_linears
        self._folded = weights.dense
        packs = choice.format.settings(weights.linears, self.dense) is not None
        self.packed = {name: spec for name, spec in self.quantized.items() if spec.kind == "linear"} if packs else {}

    @cached_property
    def untied(self) -> bool:
        """True if a packed linear shares its weight, as a head with the embeddings, which are stored apart then."""
        return any(len(self.loaded.sharing(name)) > 1 for name in self.packed)

    @cached_property
    def prefixes(self) -> dict[str, str]:
        """The beginning of the names of each packed linear's tensors."""
        return stored_names.prefixes(self.loaded.model, self.packed)

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Dtype and shape of every tensor in the checkpoint, by its name there."""
        found: dict[str, TensorSpec] = {}
        for names in stored_names.groups(self._names):
            own = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (dtype, shape) in self._dense(names)}
            stored = stored_names.as_stored(self.loaded.model, own)
            found |= {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()}
            for linear in self._packed_in(names):
                layout = self.format.layout(self.packed[linear], self._dtype_of(linear))
                found |= {f"{self.prefixes[linear]}.{ending}": spec for ending, spec in layout.items()}
        return found

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor with its name in the checkpoint, layer by layer."""
        for names in stored_names.groups(self._names):
            own = {name: self._value(name).to(dtype) for name, (dtype, _) in self._dense(names)}
            yield from stored_names.as_stored(self.loaded.model, own).items()
            del own
            for linear in self._packed_in(names):
                tensors = self._encoded(linear)
                yield from ((f"{self.prefixes[linear]}.{ending}", tensor) for ending, tensor in tensors.items())

    def _encoded(self, linear: str) -> dict[str, Tensor]:
        try:
            return self.format.tensors(self.weights[linear], self._dtype_of(linear))
        except ValueError as error:
            raise InexactError(f"{linear}: {error}") from error

    def dense_bytes(self, kind: str) -> int:
        """Return the bytes of the quantized weights of ``kind`` that are stored dense."""
        own = [spec for name, spec in self.quantized.items() if spec.kind == kind and name not in self.packed]
        return self.dtype.itemsize * sum(math.prod(spec.shape) for spec in own)

    def inexact(self) -> str | None:
        """Return the name of a tensor that ``dtype`` does not hold exactly; None if there is none. Reads all of them."""
        if torch.promote_types(self.dtype, self.model_dtype) == self.dtype:
            return None
        for name, (dtype, _) in self._dense(self._names):
            value = self._value(name)
            if not torch.equal(value.to(dtype).to(value.dtype), value):
                return name
        return None

    @property
    def kept_in_float32(self) -> list[str]:
        """Names of parameters that transformers keeps in float32 in a model of a smaller dtype."""
        if self.model_dtype == torch.float32:
            return []
        parameters = self.loaded.model.named_parameters(remove_duplicate=False)
        return [name for name, parameter in parameters if parameter.dtype == torch.float32]

    @cached_property
    def _state(self) -> dict[str, TensorSpec]:
        return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.loaded.model.state_dict().items()}

    @cached_property
    def _names(self) -> list[str]:
        """Names in the model of the stored tensors: all but the other names of tied weights, which a packed one parts."""
        parted = {f"{other}.weight" for name in self.packed for other in self.loaded.sharing(name)}
        saved = stored_names.saved_tensors(self.loaded.model)
        return [name for name in self._state if name in saved or name in parted]

    def _dense(self, names: Iterable[str]) -> Iterator[tuple[str, TensorSpec]]:
        for name in names:
            if name.removesuffix(".weight") not in self.packed:
                dtype, shape = self._state[name]
                yield name, (self.dtype if dtype == self.model_dtype else dtype, shape)

    def _packed_in(self, names: Iterable[str]) -> Iterator[str]:
        return (name.removesuffix(".weight") for name in names if name.removesuffix(".weight") in self.packed)

    def _dtype_of(self, linear: str) -> torch.dtype:
        # A module may be kept in float32 in a half-precision model.
        own = self._state[f"{linear}.weight"][0]
        return self.dtype if own == self.model_dtype else own

    @cached_property
    def _slices(self) -> dict[str, list[str]]:
        return experts.by_module(self.weights)

    def _value(self, name: str) -> Tensor:
        """Return a tensor of the model as it was measured, in the model's dtype."""
        if name in self._folded:
            return self._folded[name]
        path, _, own = name.rpartition(".")
        module = self.loaded.model.get_submodule(path)
        quantized = next((other for other in self.loaded.sharing(path) if other in self.weights), None)
        if own == "weight" and quantized is not None:
            return self.weights[quantized].dequantize().to(self._state[name][0])
        with onloaded(module):
            value: Tensor = getattr(module, own).detach()
            if path in self._slices:
                dequantized: Mapping[str, Tensor] = Dequantized(self.weights)
                return experts.with_slices(module, own, value, self._slices[path], dequantized)
            # Weights that were brought for the moment are taken away again.
            return value.clone() if getattr(module, "_hf_hook", None) is not None else value
