"""Typed configuration.

Imports no torch, so `--help`, `--cfg job` and planning stay fast. The nodes of a method, a task and a tracker are untyped
here: ``instantiate.py`` checks them against the dataclass that their yaml names when it builds them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from mmq_sweeps.identity.assignment import BLOCK_GROUPS, LAYER_KINDS
from mmq_sweeps.identity.roles import LABEL


@dataclass
class PartConfig:
    """Location of a part in a model. Paths are tried in order, because they differ between releases of transformers."""

    label: str = field(default="", metadata=LABEL)  # name used by the model's authors
    module: list[str] = MISSING
    # Relative to the module. A nested list holds consecutive stacks of a part: [[encoder.block, decoder.block]].
    blocks: list[Any] = MISSING
    attention: list[str] = MISSING  # names inside a block
    mlp: list[str] = MISSING
    # Whether the part's tokens match the attention mask, so that padding is left out of statistics: true, or the names of
    # those modules inside a block that receive these tokens (or only the last of them), if others do not.
    masked: Any = False
    # Which of its tokens are vision tokens, if its linears see text tokens as well (quantization/vision_tokens.py). A label,
    # because only cells with a vision_weight depend on it, whose ids have it.
    vision_tokens: str | None = field(default=None, metadata=LABEL)


@dataclass
class ModelConfig:
    """Checkpoint, placement, parts and prompts of a model."""

    name: str = field(default=MISSING, metadata=LABEL)
    checkpoint: str = MISSING
    revision: str | None = None
    dtype: str = "float32"
    class_name: str = MISSING
    device: str = field(default="auto", metadata=LABEL)
    # Placement of weights that are not on the device: auto, cpu, disk or {MODULE: DEVICE}.
    device_map: Any = field(default=None, metadata=LABEL)
    max_memory: Any = field(default=None, metadata=LABEL)  # for device_map=auto: {cpu: 16GB, 0: 20GB}
    # For weights that do not fit into memory; null: the system's temporary folder.
    offload_dir: str | None = field(default=None, metadata=LABEL)
    parts: dict[str, PartConfig] = MISSING
    # Token embeddings and output layer: a list of paths, tried in order like a part's module; null: the model has none.
    embeddings: Any = field(default=None, metadata=LABEL)
    head: Any = field(default=None, metadata=LABEL)
    # Whether the checkpoint's generation_config.json (sampling, penalties, suppressed tokens ...) applies beneath
    # task.generation; false: only the ids of its special tokens are taken from there.
    inherit_generation: bool = False
    # false: run cells without asking the model a few items first; every figure then carries a warning.
    check: bool = field(default=True, metadata=LABEL)
    # Prompts and generation settings for captions and answers; empty for a model that cannot generate. Labels, because
    # the task contains those that it uses.
    prompts: dict[str, str] = field(default_factory=dict, metadata=LABEL)
    generation: dict[str, dict[str, Any]] = field(default_factory=dict, metadata=LABEL)


@dataclass
class PartSelection:
    """Selection of a part's linears, and their bit-widths and method."""

    bits: Any = MISSING  # a number, or a mapping over block groups and layer kinds: widths.py
    # Given as component.PART.bits.KEY; wins over bits.
    bits_at: dict[str, Any] = field(default_factory=dict)
    blocks: list[str] = field(default_factory=lambda: list(BLOCK_GROUPS))
    layers: list[str] = field(default_factory=lambda: list(LAYER_KINDS))
    group_size: Any = None  # tensor, channel or a number of input columns; null: the method's own
    method: Any = None  # an option of conf/method; null: that of the cell
    # Given as component.PART.method.FIELD.
    method_fields: dict[str, Any] = field(default_factory=dict)
    if_present: bool = False  # skip, instead of an error, if the model has no such part


@dataclass
class CalibrationConfig:
    """Calibration data: number of samples, batch size and the seed that draws them."""

    samples: int = MISSING
    batch_size: int = field(default=MISSING, metadata=LABEL)
    seed: int = MISSING


@dataclass
class StoreConfig:
    """Folder, size bound and lock lease of the store."""

    dir: str = MISSING
    max_gb: float | None = None  # of 10**9 bytes, for artifacts; null: unbounded
    lease_seconds: float = 60.0


@dataclass
class ViewConfig:
    """Settings for showing the results of a sweep while it runs and at its end; no part of a cell."""

    max_bpw: float | None = None  # name the best cell of at most so many bits per weight; null: of all


@dataclass
class Config:
    """Root of the configuration: a cell, and settings of the sweep that it belongs to."""

    model: ModelConfig = MISSING
    component: dict[str, PartSelection] = field(default_factory=dict)
    assignment: str | None = None
    method: Any = MISSING
    task: Any = MISSING
    tracker: Any = MISSING
    bits: int = MISSING
    seed: int = MISSING
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    retry: str = MISSING
    retries: int = MISSING
    output: str = MISSING
    view: ViewConfig = field(default_factory=ViewConfig)


def register() -> None:
    """Register ``schema`` for the defaults list of ``conf/config.yaml``."""
    ConfigStore.instance().store(name="schema", node=Config)
