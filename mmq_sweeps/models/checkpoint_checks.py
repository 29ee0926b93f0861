"""Refuse a checkpoint that is not what its configuration says: other files, another family, weights that do not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmq_sweeps.errors import some_of
from mmq_sweeps.identity.checkpoint import PINNED, WEIGHT_FILES, files_digest, weight_files, weights_digest
from mmq_sweeps.models.shapes import find_class

# Names the base and the layers of an adapter of peft.
ADAPTER = "adapter_config.json"
# Buffers that older releases saved and newer ones compute.
OLD_BUFFERS = ("position_ids", "inv_freq", "masked_bias")
NUMBERED = re.compile(r"\.\d+\.")


def check_folder(folder: Path, revision: str | None) -> None:
    files = weight_files(folder)
    if not files:
        what = "holds no weights" if folder.is_dir() else "is not a folder"
        raise ValueError(f"model.checkpoint={folder}: {what}; expected {' or '.join(WEIGHT_FILES)} beside config.json")
    if not (folder / "config.json").is_file():
        raise ValueError(f"model.checkpoint={folder}: holds no config.json")
    if (folder / ADAPTER).is_file():
        # transformers would load it if peft is installed, and silently leave it out if not.
        raise ValueError(
            f"model.checkpoint={folder}: holds an adapter ({ADAPTER}), which is not measured apart from its base; merge it "
            "(merge_and_unload of peft), save that, and give the merged checkpoint"
        )
    if revision is None:
        return
    if not revision.startswith(PINNED):
        raise ValueError(f"model.revision={revision}: a folder has no revisions; leave it null or pin {PINNED}DIGEST")
    found = PINNED + weights_digest(folder)
    if found != revision:
        raise ValueError(
            f"model.revision={revision}: the weights in {folder} have {found}; they are not those that the yaml names"
        )


def check_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise a ValueError if configuration, processor or tokenizer are not those that the cell is named by."""
    planned = config.get("files")
    if planned is not None and files_digest(config) != planned:
        raise ValueError(f"model.checkpoint={folder}: its files changed since the sweep was planned; plan it again")


def check_family(config: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    family, own = find_class(config).config_class.model_type, values.get("model_type")
    if own != family:
        raise ValueError(
            f"model.class_name={config['class_name']}: is of the family {family}, but {config['checkpoint']} is of "
            f"{own}{_architectures(values)}"
        )


def check_weights(config: Mapping[str, Any], values: Mapping[str, Any], info: Mapping[str, Any], strict: bool) -> None:
    """Raise a ValueError if weights do not fit: transformers would draw missing ones at random and drop others.

    transformers itself only warns. ``strict`` refuses every unused weight.
    """
    missing, mismatched = sorted(info["missing_keys"]), sorted(key for key, *_ in info["mismatched_keys"])
    unexpected = sorted(key for key in info["unexpected_keys"] if not key.endswith(OLD_BUFFERS))
    if not strict and config["class_name"] in (values.get("architectures") or []):
        # Outside of its numbered layers, trust transformers on unused weights in a class's own checkpoints.
        unexpected = [key for key in unexpected if NUMBERED.search(key)]
    problems = [
        f"{len(names)} weights {problem} ({some_of(names)})"
        for problem, names in (
            ("are missing", missing),
            ("have another shape", mismatched),
            ("have no place", unexpected),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"model.class_name={config['class_name']}: does not fit {config['checkpoint']}{_architectures(values)}: "
            + ", ".join(problems)
        )


def _architectures(values: Mapping[str, Any]) -> str:
    names = values.get("architectures")
    return f", whose config.json names {' or '.join(names)}" if names else ""
