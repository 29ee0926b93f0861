"""Tell whether a checkpoint that is quantized already can be measured as it is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from mmq_sweeps.identity.checkpoint import checkpoint_path
from mmq_sweeps.models.quantized.checkpoint import StoredCheckpoint, read_checkpoint
from mmq_sweeps.models.quantized.loaders import lacking_packages, of_transformers
from mmq_sweeps.models.quantized.names import FittedCheckpoint, fit
from mmq_sweeps.models.shapes import Shape, build_on_meta


def fit_checkpoint(config: Mapping[str, Any]) -> FittedCheckpoint:
    """Match the folder ``model.checkpoint`` of ``config`` with the modules of ``model.class_name``, without its weights."""
    folder = checkpoint_path(config["checkpoint"])
    assert isinstance(folder, Path), config["checkpoint"]
    checkpoint = read_checkpoint(folder)
    return fit_class(checkpoint, config)


def fit_class(checkpoint: StoredCheckpoint, config: Mapping[str, Any]) -> FittedCheckpoint:
    """Match ``checkpoint`` with the class that ``config`` names; the errors of ``build_on_meta``."""
    return fit(checkpoint, build_on_meta(config, Shape(checkpoint.values, "")))


def problem(config: Mapping[str, Any], fitted: FittedCheckpoint) -> str | None:
    """Return a sentence if the quantized checkpoint of ``config`` cannot be measured as it is; None if it can."""
    configuration = fitted.checkpoint.configuration
    assert configuration is not None
    key = f"model.checkpoint={config['checkpoint']}: is quantized already, by {configuration.method}"
    verdict = of_transformers(fitted)
    if verdict.loads is False:
        return f"{key}, and transformers {transformers.__version__} does not load it: {'; '.join(verdict.reasons)}"
    if packages := lacking_packages(fitted):
        return f"{key}, which takes packages that are not installed: {pip(packages)}"
    if config.get("device_map") is not None:
        return f"{key}: model.device_map={config['device_map']} is for full precision; leave it null"
    return None


def pip(packages: list[str]) -> str:
    """Return the command that installs ``packages``, quoted for a shell."""
    return shlex.join(["pip", "install", *packages])
