"""Recover the command line that measures a cell from its record's configuration.

Only values that differ from the options' own yaml files are listed; the files are read without Hydra's composition. Fields
that no yaml file has (digests of data and weights) are skipped: they follow from the others.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mmq_sweeps.config.paths import conf_dir

# Defaults of fields that a model's yaml may omit.
MODEL_FIELDS = {"model.dtype": "float32", "model.revision": None, "model.inherit_generation": False}
# Mappings that are interpolated as a whole and that a user may extend: overridden as a whole, or not at all.
WHOLE = ("task.generation",)
# Text that needs no quotes on Hydra's command line.
PLAIN = re.compile(r"[A-Za-z_./][\w./:-]*")
NOT_TEXT = ("null", "true", "false", "yes", "no", "on", "off", "nan", "inf")


def overrides(cell: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the overrides of ``cell`` without the bits of its parts, quoted for a shell.

    Example: ``model=m task=t task.limit=8 method=gptq method.group_size=64 calibration.samples=2``.
    """
    model = _model_option(names["model"], json.dumps(_of_model(cell["model"]), sort_keys=True))
    method = names["method"]
    defaults = _defaults(model, names["task"], method)
    told = [f"model={model}"]
    told += [f"model.name={value_text(names['model'])}"] if model != names["model"] else []
    told += _differing("model", cell["model"], defaults)
    told += [f"task={names['task']}", *_differing("task", cell["task"], defaults)]
    told += [f"method={method}", *_differing("method", cell.get("method") or {}, defaults)]
    told += _differing("calibration", cell.get("calibration") or {}, defaults)
    return " ".join(map(shlex.quote, told))


def _differing(section: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    for key, value in _leaves(section, values):
        if key not in defaults or key.endswith("._target_"):
            continue
        if key == "model.revision" and str(value).startswith("sha256:"):
            continue  # The revision of a local folder is the digest of its weights.
        if not _alike(value, defaults[key]):
            yield f"{key}={value_text(value)}"


def _alike(value: Any, default: Any) -> bool:
    if isinstance(value, list) and isinstance(default, list):
        return sorted(map(str, value)) == sorted(map(str, default))
    return bool(value == default)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and key not in WHOLE:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def value_text(value: Any) -> str:
    """Format ``value`` so that Hydra's command line parses it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(value_text, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{value_text(inner)}" for key, inner in value.items()) + "}"
    text = str(value)
    if PLAIN.fullmatch(text) and text.lower() not in NOT_TEXT and not text.endswith(":"):
        return text
    # Hydra takes backslashes literally, except right before a quote.
    quoted = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)
    trailing = len(quoted) - len(quoted.rstrip("\\"))
    return "'" + quoted + "\\" * trailing + "'"


@functools.lru_cache(maxsize=64)
def _defaults(model: str, task: str, method: str) -> dict[str, Any]:
    """Return the values of the options' yaml files, flattened to command-line keys, with interpolations resolved."""
    config = _read(conf_dir() / "config.yaml")
    merged = OmegaConf.create(
        {
            "seed": config.get("seed"),
            "calibration": config.get("calibration"),
            "model": _read(conf_dir() / "model" / f"{model}.yaml"),
            "task": _read(conf_dir() / "task" / f"{task}.yaml"),
            "method": _read(conf_dir() / "method" / f"{method}.yaml"),
        }
    )
    found: dict[str, Any] = dict(MODEL_FIELDS)
    for section in ("calibration", "model", "task", "method"):
        for name in merged[section] or ():
            try:
                value = merged[section][name]
            except OmegaConfBaseException:
                continue  # It interpolates a field that this model lacks.
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
            found |= dict(_leaves(f"{section}.{name}", value))
    return found


def _read(path: Path) -> Any:
    """Load an option's yaml; empty if the package has none, since the option is then the user's own."""
    try:
        return OmegaConf.load(path)
    except (OSError, OmegaConfBaseException, YAMLError):
        return OmegaConf.create({})


@functools.lru_cache(maxsize=64)
def _model_option(name: str, told: str) -> str:
    """Find the option of a renamed model by its class and parts; ``name`` itself if there is none."""
    folder = conf_dir() / "model"
    if (folder / f"{name}.yaml").is_file():
        return name
    for path in sorted(folder.glob("*.yaml")):
        if json.dumps(_of_model(OmegaConf.to_container(_read(path))), sort_keys=True) == told:
            return path.stem
    return name


def _of_model(model: Any) -> Any:
    """Reduce a model's configuration to its class and parts, without the checkpoint."""
    parts = model.get("parts") or {}
    return {
        "class_name": model.get("class_name"),
        "parts": {
            name: {key: where.get(key) for key in ("module", "blocks", "attention", "mlp")}
            for name, where in parts.items()
        },
    }
