"""Change copies of the embedded checkpoints, and return the problems found in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.models.loading import load_model

EMBEDDED = Path(__file__).parents[2] / "mmq_sweeps" / "models" / "embedded"
Composed = Callable[..., DictConfig]
Weights = dict[str, Tensor]
TINY = ("task.limit=12", "calibration.samples=4", "calibration.batch_size=2", "tracker=none", "method=none")


def copied(name: str, folder: Path) -> Path:
    return shutil.copytree(EMBEDDED / name, folder / name)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    weights = folder / "model.safetensors"
    save_file(change(load_file(weights)), weights, metadata={"format": "pt"})


def settings(composed: Composed, folder: Path, *overrides: str) -> dict[str, Any]:
    config = composed(*TINY, f"model={folder.name}", f"model.checkpoint={folder}", "model.revision=null", *overrides)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    return resolved


def found(composed: Composed, folder: Path, *overrides: str) -> list[str]:
    """Return the problems of the checkpoint in ``folder``, which is named after its model."""
    config = settings(composed, folder, *overrides)
    return list(build("task", config["task"]).check_model(load_model(config["model"])))
