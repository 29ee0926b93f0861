"""The quantized weights of a finished cell, read from the store one unit at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmq_sweeps.errors import StoreError, some_of
from mmq_sweeps.execution.session import Session
from mmq_sweeps.export.formats.base import LinearSpec
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.identity.end_parts import EMBEDDINGS
from mmq_sweeps.memory import Computed
from mmq_sweeps.methods.formats import QuantizedWeight
from mmq_sweeps.models import experts
from mmq_sweeps.models.initializing import loads_packed
from mmq_sweeps.quantization.requests import Request
from mmq_sweeps.quantization.stored_units import DENSE, StoredUnit, read_unit
from mmq_sweeps.reporting.progress import Reporter
from mmq_sweeps.store.kinds import ArtifactKind

logger = logging.getLogger(__name__)
# A layer has two units, whose tensors alternate in some models.
HELD = 2


class CellWeights(Computed[QuantizedWeight]):
    """The quantized weights of ``cell`` by linear, in the order of the model; those of ``HELD`` units are in memory.

    Units that were evicted are computed again when the first of them is asked for, and ``recomputed`` counts them.
    """

    def __init__(self, session: Session, cell: Cell, progress: Reporter) -> None:
        self._session, self._progress = session, progress
        self.requests: Sequence[Request] = session.requests(cell)
        self.recomputed = 0
        self._request_of = {name: request for request in self.requests for name in request.unit.linears}
        self._held: dict[str, StoredUnit] = {}
        super().__init__(self._request_of, lambda name: self._unit(self._request_of[name]).weights[name])

    @property
    def dense(self) -> Mapping[str, Tensor]:
        """Other parameters of the model that take other values, by name, read when one is asked for."""
        held = {
            name.removesuffix(DENSE): request
            for request in self.requests
            for name in self._session.store.artifacts.names(ArtifactKind.QUANTIZED, request.key) or ()
            if name.endswith(DENSE)
        }
        return Computed(held, lambda name: self._unit(held[name]).dense[name])

    @property
    def specs(self) -> dict[str, LinearSpec]:
        """Describe each linear; of units that the store no longer has, columns are taken to have no scales of their own."""
        found = {}
        for request in self.requests:
            stored = self._session.store.artifacts.names(ArtifactKind.QUANTIZED, request.key) or set()
            for name, shape in request.unit.linears.items():
                kind = "embeddings" if request.unit.part == EMBEDDINGS else "linear"
                kind = "expert" if experts.parse(name) is not None else kind
                packed = kind != "linear" or loads_packed(self._session.loaded.model, name)
                found[name] = LinearSpec(request.format, shape, f"{name}:input_scale" in stored, kind, packed)
        return found

    @property
    def linears(self) -> dict[str, LinearSpec]:
        """Those of ``specs`` that are modules of their own, and no embeddings."""
        return {name: spec for name, spec in self.specs.items() if spec.kind == "linear"}

    @property
    def dense_linears(self) -> tuple[str, ...]:
        """Names of the model's linears that stay as they are."""
        quantized = self.linears
        every = self._session.loaded.model.named_modules()
        return tuple(name for name, module in every if isinstance(module, nn.Linear) and name not in quantized)

    @property
    def missing(self) -> list[Request]:
        """Units that the store no longer has."""
        store = self._session.store
        return [one for one in self.requests if not store.artifacts.has(ArtifactKind.QUANTIZED, one.key)]

    def _unit(self, request: Request) -> StoredUnit:
        if request.key in self._held:
            return self._held[request.key]
        unit = read_unit(request, self._session.store)
        if unit is None:
            # Lost to corruption, which the store has told.
            self.quantize_again([request])
            unit = read_unit(request, self._session.store)
        if unit is None:
            raise StoreError(f"the store lost {request.unit.name} right after it was written")
        while len(self._held) >= HELD:
            del self._held[next(iter(self._held))]
        self._held[request.key] = unit
        return unit

    def quantize_again(self, missing: Sequence[Request]) -> None:
        """Quantize units that the store no longer has, and say so."""
        logger.warning(
            "%d of %d quantized units are no longer in the store (%s) and are computed again",
            len(missing), len(self.requests), some_of(request.unit.name for request in missing),
        )  # fmt: skip
        self.recomputed += len(missing)
        if failures := self._session.compute(missing, self._progress):
            raise next(iter(failures.values()))
