"""Hydra's side of sweeping: a union of grids, handed over as one batch.

Unlike Hydra's basic sweeper it composes nothing itself (the launcher composes each cell once, and tells what is wrong with
it) and writes no folder of its own: the store has the sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mmq_sweeps.errors import ConfigError


class GridSweeper(Sweeper):
    """``conf/hydra/sweeper/grid.yaml``."""

    def __init__(self, params: Any = None, grids: Any = None) -> None:
        """``sweep`` reads both from the configuration, where they are not resolved yet."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.composed = hydra_context, config
        self.cells_launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        # Unresolved: an axis may have the value ${bits}, which is that of each cell.
        settings: Any = OmegaConf.to_container(self.composed.hydra.sweeper, resolve=False)
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        jobs: dict[tuple[str, ...], None] = {}
        for axes in axes_of_grids(settings["params"], settings["grids"]):
            jobs |= dict.fromkeys(combinations(parser.parse_overrides([*axes, *arguments])))
        return [self.cells_launcher.launch([list(job) for job in jobs], initial_job_idx=0)]


def axes_of_grids(params: Any, grids: Any) -> list[list[str]]:
    """The axes of each grid, as overrides: those of ``params`` and its own; a ``ConfigError`` where one is no mapping."""
    if grids is not None and (isinstance(grids, str) or not isinstance(grids, Sequence)):
        raise ConfigError(f"hydra.sweeper.grids={grids}: give a list of mappings from keys to choices.")
    for axes in (params or {}, *(grids or [])):
        if not isinstance(axes, Mapping):
            raise ConfigError(f"hydra.sweeper: {axes!r} is no mapping from keys to choices, such as {{bits: '2,3'}}.")
    sets = [{**(params or {}), **axes} for axes in grids or [{}]]
    return [[f"{key}={choices}" for key, choices in axes.items()] for axes in sets]


def combinations(overrides: Sequence[Override]) -> list[tuple[str, ...]]:
    """Every combination of the values of ``overrides``, the last changing fastest; of one key, the last override holds."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise HydraException(f"{override.input_line}: give choices, a range or a glob")
    return list(product(*values.values()))
