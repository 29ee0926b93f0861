"""The models that have a yaml in ``conf/model``, read without Hydra's composition."""

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
    """Those that say which model they are; ``custom`` leaves that to the command line."""
    return sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml") if "???" not in path.read_text())


def read_model(model: str) -> dict[str, Any]:
    """The configuration of ``model``: a name of ``conf/model``, or the path of a yaml file of one's own."""
    own = model.endswith(".yaml")
    path = Path(model) if own else conf_dir() / "model" / f"{model}.yaml"
    if not path.is_file():
        raise ConfigError(f"{model}: is not a file" if own else unknown("model", model, model_names()))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(path))
        return OmegaConf.to_container(merged, throw_on_missing=True)  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
