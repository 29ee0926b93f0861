"""From a model's configuration to a model in memory, with its weights' digest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mmq_sweeps.models.checkpoint import PINNED, WEIGHT_FILES, checkpoint_path, weight_files, weights_digest


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, what prepares its inputs, and the configuration it was loaded from."""

    model: transformers.PreTrainedModel
    processor: Any
    config: Mapping[str, Any]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def linear(self, name: str) -> nn.Linear:
        """The linear of this full name; a TypeError where it is something else."""
        module = self.model.get_submodule(name)
        if not isinstance(module, nn.Linear):
            raise TypeError(f"{name} is a {type(module).__name__}, not a linear")
        return module

    def to_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs on the model's device, floating ones in its dtype."""
        dtype = next(self.model.parameters()).dtype
        return {
            name: tensor.to(self.device, dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in inputs.items()
        }

    @contextmanager
    def weights_replaced(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Run with ``weights`` ``{linear: [O, I]}`` in place; afterwards the full-precision ones are back, bit for bit."""
        linears = {name: self.linear(name) for name in weights}
        kept = {name: linear.weight.detach().clone() for name, linear in linears.items()}
        try:
            with torch.no_grad():
                for name, linear in linears.items():
                    linear.weight.copy_(weights[name])
            yield
        finally:
            with torch.no_grad():
                for name, linear in linears.items():
                    linear.weight.copy_(kept[name])


def load_model(config: Mapping[str, Any]) -> LoadedModel:
    """Load ``conf/model/*.yaml``'s ``config``; a ValueError names the folder or class that does not serve."""
    checkpoint = checkpoint_path(config["checkpoint"])
    revision = config["revision"]
    if isinstance(checkpoint, Path):
        _check_folder(checkpoint, revision)
        revision = None
    model_class = getattr(transformers, config["class_name"], None)
    if model_class is None:
        raise ValueError(
            f"model.class_name={config['class_name']}: transformers {transformers.__version__} has no such class"
        )
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    model = model_class.from_pretrained(checkpoint, dtype=getattr(torch, config["dtype"]), **options)
    processor = transformers.AutoProcessor.from_pretrained(checkpoint, **options)
    return LoadedModel(model.eval().requires_grad_(False).to(choose_device(config["device"])), processor, config)


def choose_device(device: str) -> str:
    """``auto`` is CUDA where there is one, else the CPU; a device that is absent is a ValueError."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"model.device={device}: this machine or this build of torch has no CUDA; choose auto or cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("model.device=mps: this machine or this build of torch has no MPS; choose auto or cpu")
    return device


def _check_folder(folder: Path, revision: str | None) -> None:
    files = weight_files(folder)
    if not files:
        what = "holds no weights" if folder.is_dir() else "is not a folder"
        raise ValueError(f"model.checkpoint={folder}: {what}; expected {' or '.join(WEIGHT_FILES)} beside config.json")
    if revision is None:
        return
    if not revision.startswith(PINNED):
        raise ValueError(f"model.revision={revision}: a folder has no revisions; leave it null or pin {PINNED}DIGEST")
    found = PINNED + weights_digest(folder)
    if found != revision:
        raise ValueError(
            f"model.revision={revision}: the weights in {folder} have {found}; they are not those that the yaml names"
        )
