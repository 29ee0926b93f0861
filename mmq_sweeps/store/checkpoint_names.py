"""Detect different checkpoints under the same ``model.name``.

Their cells and artifacts never mix, but tables show them under the same name, so the user is warned.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmq_sweeps.identity.cell import QUANTIZED, digest

Model = Mapping[str, Any]


def told(models: Iterable[tuple[str, Model]]) -> list[str]:
    """Return a warning for each name shared by different weights among ``models``, pairs ``(name, effective model)``.

    A checkpoint that is quantized already may share it: tables show it as a method of the model that it was made from.
    """
    by_name: dict[str, dict[str, Model]] = {}
    for name, model in models:
        if not model.get(QUANTIZED):
            by_name.setdefault(name, {}).setdefault(_weights(model), model)
    return [
        f"model.name={name} names {len(models)} different checkpoints: {', '.join(sorted(map(_named, models.values())))}; "
        "their cells are kept apart, but tables show them under one name: give one of them a model.name of its own"
        for name, models in sorted(by_name.items())
        if len(models) > 1
    ]


def place(root: Path, name: str, model: Model) -> Path:
    """Return the path of the file that records that ``name`` stands for these weights."""
    return _folder(root, name) / f"{_weights(model)}.json"


def content(name: str, model: Model) -> dict[str, Any]:
    """Return the content of the file at ``place``."""
    return {"name": name, **{key: model.get(key) for key in ("checkpoint", "revision", "files", QUANTIZED)}}


def recorded(root: Path, names: Iterable[str]) -> list[tuple[str, Model]]:
    """Return the ``(name, model)`` pairs that the store has recorded for ``names``."""
    return [
        (name, found)
        for name in dict.fromkeys(names)
        for path in sorted(_folder(root, name).glob("*.json"))
        if (found := _read(path)) is not None
    ]


def _folder(root: Path, name: str) -> Path:
    # Hashed, because a name may contain characters that a file name may not.
    return root / "models" / digest(name)[:12]


def _weights(model: Model) -> str:
    """Identify a checkpoint's weights by origin, revision or digest, and the digest of its other files."""
    revision = str(model.get("revision") or "")
    # With a digest of the weights the path is left out: the same weights may lie in two folders.
    known_by = [revision] if revision.startswith("sha256:") else [model["checkpoint"], revision]
    return digest([*known_by, *filter(None, [model.get("files")])])[:12]


def _named(model: Model) -> str:
    known_by = [model.get("revision"), (files := model.get("files")) and f"other files {files}"]
    told = ", ".join(filter(None, known_by))
    return f"{model['checkpoint']} ({told})" if told else str(model["checkpoint"])


def _read(path: Path) -> Model | None:
    """Read a recorded model; None if unreadable, because the file only serves a warning."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "checkpoint" in found else None
