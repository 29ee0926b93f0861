"""Compose single cells' configurations with the sweep's fast composer: Hydra alone takes twenty times as long."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, base

from launch.plugin.compose import Composer
from mmq_sweeps.config import schema
from mmq_sweeps.config.paths import conf_dir


def composed(*overrides: str) -> DictConfig:
    """Compose ``conf/config.yaml`` with ``overrides``; ``tests/launch/plugin/test_compose.py`` compares it with Hydra's."""
    return _composer().compose(overrides)


@functools.cache
def _composer() -> Composer:
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return Composer(loader, loader.load_configuration("config", [], RunMode.MULTIRUN))


def parse_once() -> None:
    """Have Hydra parse a file again only if it has changed, and OmegaConf each reference once: half of composing is parsing."""
    Plugins.instance()  # Registers the sources.
    source = SourcesRegistry.instance().resolve("file")
    source.load_config = _file_once(source.load_config)  # type: ignore[method-assign]
    base.parse = functools.lru_cache(maxsize=None)(base.parse)  # type: ignore[attr-defined]


def _file_once(load: Callable[[ConfigSource, str], ConfigResult]) -> Callable[[ConfigSource, str], ConfigResult]:
    parsed: dict[tuple[object, ...], bytes] = {}

    def load_config(self: ConfigSource, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        if not file.is_file():
            return load(self, config_path)
        state = file.stat()
        key = (self.provider, file, state.st_ino, state.st_mtime_ns, state.st_size)
        if key not in parsed:
            parsed[key] = pickle.dumps(load(self, config_path))
        result: ConfigResult = pickle.loads(parsed[key])  # noqa: S301
        return result

    return load_config
