"""Compose the cells of a multirun, reading files only for distinct group choices.

Hydra takes some 50 ms to compose a configuration from files, and a grid has few choices of groups (method, component,
...) but many values (bits). Each combination of choices is composed once; values are applied to a copy by Hydra's own
functions and in its order: groups first, then values from left to right.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mmq_sweeps.errors import ConfigError

# Groups that take a single option: Hydra would merge the fields of several, and does not list them among its choices.
# `component` is not here, since selections of several components combine.
ONE_OPTION = ("model", "method", "task", "tracker")


class Composer:
    """Composes the jobs of a sweep as ``load_sweep_config`` would, without the ``hydra`` node.

    ``grids`` holds the ``hydra.sweeper`` settings that generated the jobs; a job whose files set others raises a
    ``ConfigError``.
    """

    def __init__(
        self, loader: ConfigLoader, master: DictConfig, grids: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        assert isinstance(loader, ConfigLoaderImpl)
        self._loader, self._master, self._grids = loader, master, grids
        self._parser = OverridesParser.create()
        self._repository = repository_of(loader, master)
        self._parsed: dict[str, tuple[Override, bool]] = {}
        self._composed: dict[tuple[str, ...], bytes] = {}

    def read(self, line: str) -> tuple[Override, bool]:
        """Parse an override; also return whether it affects which files are read, as a group's option and hydra's own do."""
        if line not in self._parsed:
            override = self._parser.parse_override(line)
            is_group = self._repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict)
            self._parsed[line] = override, is_group or override.is_hydra_override()
        return self._parsed[line]

    def values(self, overrides: Sequence[str]) -> list[Override]:
        """Return those of the ``overrides`` that set a value in the composed files."""
        return [override for override, chooses in map(self.read, overrides) if not chooses]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the configuration of a job; a ``ConfigError`` or ``HydraException`` if it cannot be composed."""
        config, values = self.chosen(overrides), self.values(overrides)
        if any(map(_adds_below, values)):
            raw = OmegaConf.to_container(config, resolve=False)
            if replacing := [sentence for value in values if (sentence := _replaces(config, raw, value))]:
                raise ConfigError(replacing)
        try:
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
        except OmegaConfBaseException as error:
            raise ConfigCompositionException() from error
        return config

    def chosen(self, overrides: Sequence[str]) -> DictConfig:
        """Return the composed files of a job, before its values are set."""
        choices = tuple(line for line in overrides if self.read(line)[1])
        if choices not in self._composed:
            # Pickling and unpickling is three times as fast as a deep copy; the data never leaves this process.
            whole = self._loader.load_sweep_config(self._master, list(choices))
            check_composed(whole, whole.hydra)
            if self._grids is not None:
                _check_sweep_settings(whole, self._master, self._grids, choices)
            with open_dict(whole):
                whole.pop("hydra")
            self._composed[choices] = pickle.dumps(whole)
        config: DictConfig = pickle.loads(self._composed[choices])  # noqa: S301
        return config


def check_added(loader: ConfigLoader, hydra: Any) -> None:
    """Raise a ``ConfigError`` if an override of a single run replaced a reference by the key that it adds below it.

    The composed configuration no longer shows that, so it is composed again if an override may have.
    """
    overrides: list[str] = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # type: ignore[assignment]
    if any(_adds_below(override) for override in OverridesParser.create().parse_overrides(overrides)):
        Composer(loader, OmegaConf.create({"hydra": hydra})).compose(overrides)


def _adds_below(override: Override) -> bool:
    return (override.is_add() or override.is_force_add()) and "." in override.key_or_group


def _replaces(config: DictConfig, raw: Any, override: Override) -> str | None:
    """Return a sentence if ``override`` adds a key below a reference such as ``${model.generation.caption}``.

    ``raw`` has the values of ``config``, unresolved. OmegaConf would replace the reference by a node that holds the new key
    alone, and drop all that it refers to.
    """
    if not _adds_below(override):
        return None
    names = override.key_or_group.split(".")
    node = raw
    for depth, name in enumerate(names[:-1], 1):
        node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, str) and "${" in node:
            key, below = ".".join(names[:depth]), ".".join(names[depth:])
            sign, value = override.input_line.split(override.key_or_group, 1)  # type: ignore[union-attr]
            remedy = f"give {key}=VALUE"
            if reference := re.fullmatch(r"\$\{([\w.]+)\}", node):
                whole = OmegaConf.is_dict(OmegaConf.select(config, reference[1]))
                remedy = f"set {f'{sign}{reference[1]}.{below}{value}' if whole else f'{reference[1]}=VALUE'} instead"
            return f"{override.input_line}: {key} is {node}, which {below} would replace as a whole; {remedy}."
    return None


def repository_of(loader: ConfigLoader, master: DictConfig) -> IConfigRepository:
    """Return the config files behind ``master``, including ``hydra.searchpath``, which ``loader`` lacks."""
    assert isinstance(loader, ConfigLoaderImpl)
    overrides: list[str] = OmegaConf.to_container(master.hydra.overrides.hydra, resolve=False)  # type: ignore[assignment]
    return loader._parse_overrides_and_create_caching_repo(master.hydra.job.config_name, overrides)[1]


def check_composed(config: DictConfig, hydra: Any) -> None:
    """Raise a ``ConfigError`` if a group has several options, a folder is missing, or a chosen file is shadowed by another.

    Hydra silently takes the first of several files with the same name; the package's own come before those of
    ``--config-dir`` and ``hydra.searchpath``.
    """
    overrides: list[str] = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # type: ignore[assignment]
    listed = [group for group in ONE_OPTION if group not in hydra.runtime.choices and config.get(group)]
    listed += ["experiment" for override in overrides if override.startswith("experiment=[")]
    if listed:
        raise ConfigError(
            f"{group}: takes one option, not a list; for cells of each: -m {group}=A,B" for group in listed
        )
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    if absent := [folder for folder in folders if not folder.is_dir()]:
        raise ConfigError(f"hydra.searchpath: {folder} is no folder." for folder in absent)
    chosen = [f"{hydra.job.config_name}.yaml"]
    for group, options in hydra.runtime.choices.items():
        names = [options] if isinstance(options, str) else options or []
        chosen += [f"{group.partition('@')[0]}/{name}.yaml" for name in names]
    problems = []
    for name in chosen:
        found = [folder / name for folder in folders if (folder / name).is_file()]
        problems += [
            f"{name.removesuffix('.yaml')}: {found[0]} is read and {hidden} is not; give yours another name."
            for hidden in found[1:]
        ]
    if problems:
        raise ConfigError(problems)


def _check_sweep_settings(
    config: DictConfig, master: DictConfig, grids: Sequence[Mapping[str, Any]], choices: Sequence[str]
) -> None:
    known = {"launcher": [OmegaConf.to_container(master.hydra.launcher, resolve=False)], "sweeper": grids}
    if ignored := [
        f"hydra.{name}"
        for name, expected in known.items()
        if OmegaConf.to_container(config.hydra[name], resolve=False) not in expected
    ]:
        raise ConfigError(
            f"{' '.join(choices)}: sets {' and '.join(ignored)}, which a sweep reads once for all its cells; make it an "
            "experiment (conf/experiment), or run it on its own."
        )
