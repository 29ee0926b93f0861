"""Where an assignment's names are looked up: the folders of Hydra's search path, and the units of models without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmq_sweeps.config.assignment import Source
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.assignment import Structure
from mmq_sweeps.identity.hashing import digest


def assignment_source(hydra: Any) -> Source:
    """Return the source for a composed ``hydra`` node; a model is built when a file first names its units."""
    folders = tuple(Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file")
    return Source(folders, cached_structures())


def cached_structures() -> Callable[[Mapping[str, Any]], Mapping[str, Structure]]:
    """Return a function that finds the units of a model's parts, and builds each model once."""
    known: dict[str, Mapping[str, Structure]] = {}

    def structures(model: Mapping[str, Any]) -> Mapping[str, Structure]:
        key = digest(model)
        if key not in known:
            known[key] = structures_of(model)
        return known[key]

    return structures


def structures_of(model: Mapping[str, Any]) -> dict[str, Structure]:
    """Build ``model`` without weights and return the units of its parts; ConfigError if its shape is not known."""
    # Imports torch, which planning does without unless a file names units.
    from mmq_sweeps.models.shapes import build_on_meta, find_shape
    from mmq_sweeps.quantization.targets import find_parts

    try:
        parts = find_parts(build_on_meta(model, find_shape(model)), model)
    except ValueError as error:
        raise ConfigError(f"assignment: the units of model={model['name']} cannot be found: {error}") from error
    return {name: part.structure for name, part in parts.items()}
