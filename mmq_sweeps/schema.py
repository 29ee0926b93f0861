"""The typed configuration, and the checks that need nothing but the configuration.

Imports no torch: `--help`, `--cfg job` and planning stay quick. The fields of a method, a task or a tracker are those of
the dataclass that its yaml names; they are checked against it when it is built (``build.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from mmq_sweeps.cell import BLOCK_GROUPS, FULL_PRECISION_BITS, LAYER_KINDS
from mmq_sweeps.errors import one_of, unknown
from mmq_sweeps.metrics import metric_names

BITS = (2, 3, 4, 5, 6, 7, 8, FULL_PRECISION_BITS)
RETRY = ("failed", "all", "none")
BITS_CHOICES = f"choose 2 to 8, or {FULL_PRECISION_BITS} for full precision."
OUTPUT = ("table", "json")
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass
class PartConfig:
    """Where a part of a model lies. Paths are tried in order, since they move between releases of transformers."""

    label: str = MISSING
    module: list[str] = MISSING
    blocks: list[str] = MISSING  # relative to the module
    attention: list[str] = MISSING  # names inside a block
    mlp: list[str] = MISSING
    masked: bool = False  # its tokens are those of the attention mask: padding does not count in statistics


@dataclass
class ModelConfig:
    name: str = MISSING
    checkpoint: str = MISSING
    revision: str | None = None
    dtype: str = "float32"
    class_name: str = MISSING
    device: str = "auto"
    parts: dict[str, PartConfig] = MISSING


@dataclass
class PartSelection:
    """What of a part is quantized, to how many bits."""

    bits: int = MISSING
    blocks: list[str] = field(default_factory=lambda: list(BLOCK_GROUPS))
    layers: list[str] = field(default_factory=lambda: list(LAYER_KINDS))
    if_present: bool = False  # left out, instead of an error, where the model has no such part


@dataclass
class CalibrationConfig:
    samples: int = MISSING
    batch_size: int = MISSING
    seed: int = MISSING


@dataclass
class StoreConfig:
    dir: str = MISSING


@dataclass
class Config:
    model: ModelConfig = MISSING
    component: dict[str, PartSelection] = field(default_factory=dict)
    method: Any = MISSING
    task: Any = MISSING
    tracker: Any = MISSING
    bits: int = MISSING
    seed: int = MISSING
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    retry: str = MISSING
    output: str = MISSING


def register() -> None:
    """Make ``schema`` known to the defaults list of ``conf/config.yaml``."""
    ConfigStore.instance().store(name="schema", node=Config)


def problems(config: Mapping[str, Any]) -> list[str]:
    """Everything wrong with a resolved configuration that can be told without loading a model; empty if nothing is."""
    known = [key.name for key in fields(Config)]
    found = [
        *(f"{key}: {unknown('key', key, known)}" for key in config if key not in known),
        *_choice_problems(config),
        *_count_problems(config),
        *_metric_problems(config["task"]),
    ]
    model, parts = config["model"], config["model"]["parts"]
    if config["method"]["_target_"] != "none" and not set(config["component"]) & set(parts):
        found.append(f"component: selects no part of {model['name']}. {one_of(parts)}")
    for part, selection in config["component"].items():
        if part not in parts and not selection["if_present"]:
            found.append(f"component: {unknown('part', part, parts)[:-1]}, the parts of {model['name']}.")
        found += _selection_problems(f"component.{part}", selection)
    return found


def _choice_problems(config: Mapping[str, Any]) -> list[str]:
    chosen = (
        ("retry", config["retry"], RETRY),
        ("output", config["output"], OUTPUT),
        ("model.device", config["model"]["device"].split(":")[0], DEVICES),
        ("model.dtype", config["model"]["dtype"], DTYPES),
    )
    found = [
        f"{key}={value}: {unknown('choice', value, choices)}" for key, value, choices in chosen if value not in choices
    ]
    if config["bits"] not in BITS:
        found.append(f"bits={config['bits']}: {BITS_CHOICES}")
    return found


def _count_problems(config: Mapping[str, Any]) -> list[str]:
    counts = {
        "calibration.samples": config["calibration"]["samples"],
        "calibration.batch_size": config["calibration"]["batch_size"],
        "task.limit": config["task"].get("limit", 1),
        "task.batch_size": config["task"].get("batch_size", 1),
    }
    return [
        f"{key}={value!r}: choose a whole number above 0."
        for key, value in counts.items()
        if isinstance(value, bool) or not isinstance(value, int) or value < 1
    ]


def _metric_problems(task: Mapping[str, Any]) -> list[str]:
    metrics = task.get("metrics")
    if not metrics:
        return [f"task.metrics={metrics}: selects no metric. {one_of(metric_names())}"]
    # A metric of one's own is named module:Class; it is found when the task is built.
    return [
        f"task.metrics: {unknown('metric', name, metric_names())}"
        for name in metrics
        if ":" not in name and name not in metric_names()
    ]


def _selection_problems(key: str, selection: Mapping[str, Any]) -> list[str]:
    found = []
    if selection["bits"] not in BITS:
        found.append(f"{key}.bits={selection['bits']}: {BITS_CHOICES}")
    for name, choices in (("blocks", BLOCK_GROUPS), ("layers", LAYER_KINDS)):
        values = selection[name]
        if not values:
            found.append(f"{key}.{name}=[]: selects nothing. {one_of(choices)}")
        found += [f"{key}.{name}: {unknown(name[:-1], value, choices)}" for value in values if value not in choices]
        if len(set(values)) < len(values):
            found.append(
                f"{key}.{name}=[{', '.join(values)}]: names one twice, so its linears would be selected twice."
            )
    return found
