"""Composing the cells of a multirun: in full only where their group choices differ.

Hydra composes a configuration from files in some 50 ms; a grid has few choices of groups (method, component, ...) and many
of values (bits). Values are put into a copy of what their choices come to, by Hydra's own application of overrides, in its
order: first groups, then values from left to right.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException


def compose_all(
    loader: ConfigLoader, master: DictConfig, job_overrides: Sequence[Sequence[str]]
) -> Iterator[DictConfig]:
    """The configuration of each job, as ``load_sweep_config`` would compose it, without the ``hydra`` node.

    One at a time, since a composed configuration takes a hundred times the memory of its plain values.
    """
    assert isinstance(loader, ConfigLoaderImpl)
    parsed: dict[str, Override] = {}
    composed: dict[tuple[str, ...], bytes] = {}
    parser = OverridesParser.create()
    for overrides in job_overrides:
        for line in overrides:
            if line not in parsed:
                parsed[line] = parser.parse_override(line)
        choices = tuple(line for line in overrides if _chooses(parsed[line], loader))
        if choices not in composed:
            # Pickled and unpickled here and now: three times as quick as a deep copy.
            composed[choices] = pickle.dumps(_without_hydra(loader.load_sweep_config(master, list(choices))))
        config: DictConfig = pickle.loads(composed[choices])  # noqa: S301
        try:
            ConfigLoaderImpl._apply_overrides_to_config(
                [parsed[line] for line in overrides if line not in choices], config
            )
        except OmegaConfBaseException as error:
            raise ConfigCompositionException() from error
        yield config


def _chooses(override: Override, loader: ConfigLoaderImpl) -> bool:
    """Whether it is about files: an option of a group, or hydra's own settings, which say where files are looked for."""
    is_group = loader.repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict)
    return is_group or override.is_hydra_override()


def _without_hydra(config: DictConfig) -> DictConfig:
    with open_dict(config):
        config.pop("hydra")
    return config
