"""One name for two checkpoints: their cells and artifacts never mix, but a table shows them under one name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mmq_sweeps.cell import digest
from mmq_sweeps.store import Store

Model = Mapping[str, Any]


def told(models: Iterable[tuple[str, Model]]) -> list[str]:
    """A sentence for each name that several of the ``(name, effective model)`` have, which differ in their weights."""
    by_name: dict[str, dict[str, Model]] = {}
    for name, model in models:
        by_name.setdefault(name, {}).setdefault(_weights(model), model)
    return [
        f"model.name={name} names {len(models)} different checkpoints: {', '.join(map(_named, models.values()))}; their "
        "cells are kept apart, but tables show them under one name: give one of them a model.name of its own"
        for name, models in sorted(by_name.items())
        if len(models) > 1
    ]


def note(store: Store, models: Iterable[tuple[str, Model]]) -> list[str]:
    """Note in the store which weights go by which name; ``told`` of these names, with those noted before."""
    new = {(name, _weights(model)): model for name, model in models}
    seen: list[tuple[str, Model]] = []
    for name in dict.fromkeys(name for name, _ in new):
        folder = store.root / "models" / digest(name)[:12]
        for path in sorted(folder.glob("*.json")):
            content = _content(path.read_text())
            if content is not None:
                seen.append((name, content))
        for (other, weights), model in new.items():
            if other == name and not (folder / f"{weights}.json").exists():
                noted = {key: model.get(key) for key in ("checkpoint", "revision")}
                store.note(f"models/{folder.name}/{weights}.json", {"name": name, **noted})
    return told([*seen, *((name, model) for (name, _), model in new.items())])


def _weights(model: Model) -> str:
    """What the weights are known by: where they came from, and the revision or digest that was read there."""
    revision = str(model.get("revision") or "")
    # The digest of a folder's weights says it all; the same weights may lie in two folders.
    return digest([revision] if revision.startswith("sha256:") else [model["checkpoint"], revision])[:12]


def _named(model: Model) -> str:
    revision = model.get("revision")
    return f"{model['checkpoint']} ({revision})" if revision else str(model["checkpoint"])


def _content(text: str) -> Model | None:
    """What was noted; None where the file is no use, since it is only there for a warning."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) and "checkpoint" in content else None
