"""Proxies of an option's damage: output error, gradient x error, divergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.searches.subjects import WIDTHS
from benchmarks.searches.workshop import Silent, Workshop
from mmq_sweeps.search.space import Space


def proxy_tables(workshop: Workshop, space: Space) -> dict[str, list[np.ndarray]]:
    """Return the tables of every proxy by axis and option: sums over units of output error, gradient x error, divergence."""
    by_unit = _unit_figures(workshop)
    found = {}
    for proxy in ("output error", "gradient x error", "divergence"):
        found[proxy] = [
            np.array(
                [
                    0.0 if one.full else sum(by_unit[proxy][unit, one.bits] for unit in axis.units)
                    for one in axis.options
                ]
            )
            for axis in space.axes
        ]
    return found


def _unit_figures(workshop: Workshop) -> dict[str, dict[tuple[str, int], float]]:
    """Return every proxy of every unit and width, from 64 samples of the calibration split apart from the calibration's."""
    import torch

    from mmq_sweeps.quantization.stored_units import Dequantized, read_unit
    from mmq_sweeps.store.kinds import ArtifactKind

    found: dict[str, dict[tuple[str, int], float]] = {"output error": {}, "gradient x error": {}, "divergence": {}}
    loaded = workshop.session.loaded
    workshop.session.weights.restore()
    batches = list(workshop.session.task.calibration_batches(loaded, {"samples": 64, "seed": 99, "batch_size": 16}))
    full = _log_probabilities(loaded, batches)
    gradients = _gradients(workshop, batches)
    for bits in WIDTHS[:-1]:
        cell, session, needed = workshop.requests({"parts": dict.fromkeys(workshop.subject.parts, bits)})
        session.quantize(cell, Silent())
        session.weights.restore()
        for request in needed:
            unit = read_unit(request, workshop.store)
            described = workshop.store.artifacts.description(ArtifactKind.QUANTIZED, request.key)
            assert unit is not None
            assert described is not None
            key, weights = (request.unit.name, bits), unit[0]
            count = sum(rows * columns for rows, columns in request.unit.linears.values())
            found["output error"][key] = described["output_error"] * count
            found["gradient x error"][key] = sum(
                float((gradients[name] * (loaded.weight(name) - own.dequantize())).abs().sum())
                for name, own in weights.items()
            )
            with torch.no_grad(), loaded.weights_replaced(Dequantized(weights)):
                other = _log_probabilities(loaded, batches)
            found["divergence"][key] = float((full.exp() * (full - other)).sum(-1).mean())
    return found


def _log_probabilities(loaded: Any, batches: Sequence[Mapping[str, Any]]) -> Any:
    import torch

    found = []
    with torch.no_grad():
        for batch in batches:
            moved = loaded.to_device(dict(batch))
            mask = moved["attention_mask"].bool()
            found.append(loaded.model(**moved).logits[:, -mask.shape[1] :].float().log_softmax(-1)[mask])
    return torch.cat(found)


def _gradients(workshop: Workshop, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the gradient of the right texts' loss by the weight of every linear."""
    import torch

    loaded, model = workshop.session.loaded, workshop.session.loaded.model
    names = [
        name for part in workshop.subject.parts for unit in workshop.session.parts[part].units for name in unit.linears
    ]
    weights = {name: model.get_submodule(name).weight for name in names}
    model.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with torch.enable_grad():
        for batch in batches:
            moved = loaded.to_device(dict(batch))
            mask, tokens = moved["attention_mask"].bool(), moved["input_ids"]
            logits = model(**moved).logits[:, -mask.shape[1] :].float()
            losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
            own = torch.autograd.grad((losses * mask[:, 1:]).sum() / mask[:, 1:].sum(), list(weights.values()))
            for name, gradient in zip(names, own, strict=True):
                found[name] += gradient / len(batches)
    model.requires_grad_(False)
    return found
