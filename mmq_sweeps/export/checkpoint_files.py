"""The files beside the weights: those of the checkpoint byte for byte, and a configuration that names the quantized linears."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers

from mmq_sweeps.export.tensors import ExportedTensors
from mmq_sweeps.export.writer import write_json
from mmq_sweeps.identity.checkpoint import QUANTIZATION_FILES, UNREAD_NAMES, other_files

CONFIG = "config.json"
# Written anew, or about weights that are stored otherwise now.
NOT_COPIED = (CONFIG, "README", *QUANTIZATION_FILES)
DTYPE_KEYS = ("dtype", "torch_dtype")


def copy_files(checkpoint: Path, folder: Path) -> None:
    """Copy processor, tokenizer, generation settings and licence of ``checkpoint`` into ``folder``."""
    for path in _copied(checkpoint):
        target = folder / path.relative_to(checkpoint)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def _copied(checkpoint: Path) -> Iterator[Path]:
    licences = (checkpoint / name for name in UNREAD_NAMES)
    for path in [*other_files(checkpoint), *(path for path in licences if path.is_file())]:
        if path.name not in NOT_COPIED and not path.name.endswith(".index.json"):
            yield path


def write_config(
    checkpoint: Path, folder: Path, model: transformers.PreTrainedModel, tensors: ExportedTensors, settings: Any
) -> None:
    """Write config.json: the checkpoint's, with class, dtype, ``quantization_config`` and untied weights."""
    values = json.loads((checkpoint / CONFIG).read_text())
    write_json(folder / CONFIG, exported_config(values, model, tensors, settings))


def exported_config(
    values: Mapping[str, Any],
    model: transformers.PreTrainedModel,
    tensors: ExportedTensors,
    settings: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of config.json for ``values``, the checkpoint's own."""
    config = copy.deepcopy(dict(values))
    dtype = str(tensors.dtype).removeprefix("torch.")
    for own in [config, *_inside(config)]:
        if own is config or any(key in own for key in DTYPE_KEYS):
            own.pop("torch_dtype", None)
            own["dtype"] = dtype
    config["architectures"] = [type(model).__name__]
    if tensors.untied:
        text_config = model.config.get_text_config(decoder=True)
        # None if the text model's configuration is that of the whole model.
        text = next(
            (name for name in model.config.sub_configs if getattr(model.config, name, None) is text_config), None
        )
        config["tie_word_embeddings"] = False
        if text is not None:
            config.setdefault(text, {})["tie_word_embeddings"] = False
        for own in _inside(config):
            if "tie_word_embeddings" in own:
                own["tie_word_embeddings"] = False
    if settings is not None:
        config["quantization_config"] = dict(settings)
    return config


def _inside(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the configurations of parts, at any depth."""
    for value in config.values():
        if isinstance(value, dict):
            yield value
            yield from _inside(value)
