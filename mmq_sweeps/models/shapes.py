"""Build a model's modules without weights, on the meta device, from a configuration that needs no network.

This suffices to find parts and to count: https://pytorch.org/docs/stable/meta.html. A checkpoint in a folder has its
``config.json``; for those of the hub, ``configs/NAME.json`` holds the values that decide shapes, and their source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from mmq_sweeps.identity.checkpoint import checkpoint_path

CONFIGS = Path(__file__).resolve().parent / "configs"


@dataclass(frozen=True)
class Shape:
    """Values of a ``config.json`` that decide a model's shape, and a sentence on their source."""

    values: Mapping[str, Any]
    source: str


def find_shape(config: Mapping[str, Any]) -> Shape:
    """Return the shape for ``config`` of ``conf/model/*.yaml``; a ValueError lists the places searched."""
    folder = checkpoint_path(config["checkpoint"])
    if isinstance(folder, Path) and (folder / "config.json").is_file():
        return Shape(json.loads((folder / "config.json").read_text()), "The checkpoint's own config.json.")
    packaged = CONFIGS / f"{config['name']}.json"
    if not packaged.is_file():
        own = folder / "config.json" if isinstance(folder, Path) else f"a folder as model.checkpoint, not {folder}"
        raise ValueError(f"{config['name']}: its shape is not known without {own} or {packaged}")
    content = json.loads(packaged.read_text())
    return Shape(content["config"], content["source"])


def build_on_meta(config: Mapping[str, Any], shape: Shape) -> transformers.PreTrainedModel:
    """Build the model that ``load_model`` would load, without weights."""
    model_class = find_class(config)
    with torch.device("meta"):
        return model_class(model_class.config_class.from_dict(dict(shape.values)))


def find_class(config: Mapping[str, Any]) -> Any:
    """Return the class that ``config`` names; ValueError if transformers has no such model."""
    found: Any = getattr(transformers, config["class_name"], None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    if not is_model or found.config_class is None:
        raise ValueError(
            f"model.class_name={config['class_name']}: transformers {transformers.__version__} has no such class of models"
        )
    return found


def tied(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the names of modules whose ``weight`` is that of another, each with all that share it."""
    names: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            names.setdefault(id(weight), []).append(path)
    return {path: tuple(shared) for shared in names.values() if len(shared) > 1 for path in shared}
