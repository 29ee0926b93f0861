"""Priors of the cost of every option: output errors of solved units, and divergences from full precision by unit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmq_sweeps.search.space import Point, Space
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.store import Store

Floats = NDArray[np.float64]
# Error of a weight rounded to this many bits, relative to itself, where no unit says it: a grid of 2 ** bits steps over about
# six standard deviations has (6 / 2 ** bits) ** 2 / 12.
ROUNDED = 3.0


def read_errors(
    space: Space, store: Store, keys: Mapping[Point, Mapping[str, str]]
) -> list[list[dict[str, float | None] | None]]:
    """Return the errors in the units' descriptions, by axis and option; None if nothing is known.

    ``keys`` has the artifact of each unit by name, for points that were measured.
    """
    found: list[list[dict[str, float | None] | None]] = [[None] * len(axis.options) for axis in space.axes]
    for point, by_unit in keys.items():
        for number, (axis, place) in enumerate(zip(space.axes, point, strict=True)):
            if found[number][place] is None and not axis.options[place].full:
                found[number][place] = _mean_error(
                    [
                        store.artifacts.description(ArtifactKind.QUANTIZED, by_unit[unit])
                        for unit in axis.units
                        if unit in by_unit
                    ]
                )
    return found


def _mean_error(described: Sequence[Mapping[str, Any] | None]) -> dict[str, float | None] | None:
    own = [one for one in described if one is not None and one.get("weight_error") is not None]
    if not own or len(own) < len(described):
        return None
    outputs = [one["output_error"] for one in own if one.get("output_error") is not None]
    return {
        "weight_error": float(np.mean([one["weight_error"] for one in own])),
        "output_error": float(np.mean(outputs)) if len(outputs) == len(own) else None,
    }


def error_table(
    space: Space, errors: Sequence[Sequence[Mapping[str, float | None] | None]] | None = None
) -> list[Floats]:
    """Return a prior of every axis and option from ``read_errors``: the share of all outputs' square that it changes.

    Output errors count, else the weights' own: on an axis that has both, as of a method that is not calibrated beside one that
    is, weight errors are brought to the size of output errors by the options that have both. An option that nothing is known
    of is taken for a rounded weight of its bits, in proportion to the axis's known options.
    """
    total = sum(axis.weights for axis in space.axes)
    tables = []
    for number, axis in enumerate(space.axes):
        rounded = np.array(
            [0.0 if option.full else ROUNDED * 4.0**-option.bits for option in axis.options], dtype=np.float64
        )
        own = errors[number] if errors is not None else [None] * len(axis.options)
        known = [one for one, option in zip(own, axis.options, strict=True) if one is not None and not option.full]
        share = _output_share(known)
        values = np.array([_value(one, share) for one in own], dtype=np.float64)
        seen = np.isfinite(values) & (rounded > 0)
        factor = float(np.exp(np.mean(np.log(np.maximum(values[seen], 1e-12) / rounded[seen])))) if seen.any() else 1.0
        tables.append(np.where(seen, values, rounded * factor) * axis.weights / total)
    return tables


def _output_share(known: Sequence[Mapping[str, float | None]]) -> float:
    """Return by how much output errors are larger than weight errors, in the geometric mean; 1 if no option has both."""
    both = [(one["output_error"], one["weight_error"]) for one in known]
    logs = [np.log(output / weight) for output, weight in both if output and weight]
    return float(np.exp(np.mean(logs))) if logs else 1.0


def _value(one: Mapping[str, float | None] | None, share: float) -> float:
    if one is None:
        return float("nan")
    output, weight = one["output_error"], one["weight_error"]
    if output is not None:
        return output
    return float("nan") if weight is None else weight * share


def with_divergences(table: Sequence[Floats], lowered: Mapping[int, tuple[int, float]]) -> list[Floats]:
    """Return ``table`` scaled to divergences: ``lowered`` has a measured option and its divergence by axis."""
    found = [own.copy() for own in table]
    for number, (place, divergence) in lowered.items():
        if table[number][place] > 0:
            found[number] = table[number] * (max(divergence, 0.0) / table[number][place])
    return found


def divergence(full: Mapping[str, str], quantized: Mapping[str, str]) -> float:
    """Return the mean Kullback-Leibler divergence of ``quantized`` from ``full``, each the predictions of a cell that was
    asked for the likelihood of right texts (``task.teacher_forced``), over the tokens of the items that both have.

    Tokens that are not among the likeliest of both count as one, so that the figure is a lower bound.
    """
    total = count = 0.0
    for item, text in full.items():
        if item in quantized:
            for own, other in zip(json.loads(text)["likeliest"], json.loads(quantized[item])["likeliest"], strict=True):
                total += _token_divergence(own, other)
                count += 1
    return total / count if count else 0.0


def _token_divergence(full: Mapping[str, float], quantized: Mapping[str, float]) -> float:
    both = [token for token in full if token in quantized]
    logs = np.array([[full[token], quantized[token]] for token in both], dtype=np.float64).reshape(-1, 2)
    masses = np.exp(logs).sum(axis=0)
    rest = np.maximum(1.0 - masses, 1e-6)
    shared = float((np.exp(logs[:, 0]) * (logs[:, 0] - logs[:, 1])).sum())
    return shared + float(rest[0] * np.log(rest[0] / rest[1]))


def full_precision(space: Space) -> Point | None:
    """Return the point at full precision; None if an axis has no such option."""
    places = [next((place for place, option in enumerate(axis.options) if option.full), None) for axis in space.axes]
    return None if None in places else tuple(place for place in places if place is not None)
