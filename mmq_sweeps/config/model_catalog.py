"""Read the models of ``conf/model`` without Hydra's composition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.schema import ModelConfig
from mmq_sweeps.errors import ConfigError, unknown


def model_names() -> list[str]:
    """List the models with a complete yaml; ``custom`` is left out, because the command line completes it."""
    return sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml") if "???" not in path.read_text())


def read_model(model: str) -> dict[str, Any]:
    """Load a model's configuration by its name in ``conf/model`` or by the path of a yaml; raise ConfigError if invalid."""
    own = model.endswith(".yaml")
    path = Path(model) if own else conf_dir() / "model" / f"{model}.yaml"
    if not path.is_file():
        raise ConfigError(f"{model}: is not a file" if own else unknown("model", model, model_names()))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(path))
        return OmegaConf.to_container(merged, throw_on_missing=True)  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
