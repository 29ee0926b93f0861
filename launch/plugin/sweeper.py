"""Hydra sweeper: expand a union of grids and pass all jobs to the launcher as a single batch.

Unlike Hydra's basic sweeper, it composes no cell itself (the launcher composes each cell once and reports its errors)
and writes no folder: the store records the sweep.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, Transformer
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

from launch.plugin.compose import repository_of
from mmq_sweeps.config.overrides import kept_apart
from mmq_sweeps.errors import ConfigError, unknown

SETTINGS = ("params", "grids")
EXPERIMENT = "experiment"


class GridSweeper(Sweeper):
    """Sweeper of ``conf/hydra/sweeper/grid.yaml``."""

    def __init__(self, **settings: Any) -> None:
        """Ignore ``settings``; ``sweep`` reads them from the configuration, before they are resolved."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.masters = _by_experiment(hydra_context.config_loader, config)
        self.cells_launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=next(iter(self.masters.values()))
        )

    def sweep(self, arguments: list[str]) -> Any:
        parser = parser_of(self.context.config_loader, next(iter(self.masters.values())))
        overrides = parser.parse_overrides(arguments)
        check_once_each(overrides)
        swept = _swept_experiment(overrides)
        jobs: dict[tuple[str, ...], None] = {}
        for experiment, master in self.masters.items():
            here = [parser.parse_override(experiment) if one is swept else one for one in overrides]
            for axes in axes_of_grids(settings_of(master)):
                jobs |= dict.fromkeys(combinations([*parser.parse_overrides(axes), *here]))
        self.cells_launcher.grids = [settings_of(master) for master in self.masters.values()]
        return [self.cells_launcher.launch([list(job) for job in jobs], initial_job_idx=0)]


def settings_of(composed: DictConfig) -> dict[str, Any]:
    """Return ``hydra.sweeper`` as plain values, unresolved: an axis may be ``${bits}``, which differs from cell to cell."""
    settings: Any = OmegaConf.to_container(composed.hydra.sweeper, resolve=False)
    if not isinstance(settings, dict):
        raise ConfigError(f"hydra.sweeper={settings!r}: give hydra.sweeper.params and hydra.sweeper.grids.")
    return settings


def _by_experiment(loader: ConfigLoader, master: DictConfig) -> dict[str, DictConfig]:
    """Return ``master`` composed for each swept experiment, since each may set its own grids; by default, ``master`` alone."""
    arguments: list[str] = OmegaConf.to_container(master.hydra.overrides.task, resolve=False)  # type: ignore[assignment]
    overrides = parser_of(loader, master).parse_overrides(arguments)
    swept = _swept_experiment(overrides)
    if swept is None:
        return {"": master}
    for_all: list[str] = OmegaConf.to_container(master.hydra.overrides.hydra, resolve=False)  # type: ignore[assignment]
    found = {}
    for job in _some_values(swept):
        others = [job if one is swept else str(one.input_line) for one in overrides]
        name = master.hydra.job.config_name
        found[job] = loader.load_configuration(name, [*for_all, *others], RunMode.MULTIRUN)
    launchers = [OmegaConf.to_container(one.hydra.launcher, resolve=False) for one in found.values()]
    if any(one != launchers[0] for one in launchers):
        raise ConfigError(
            f"{swept.input_line}: these experiments set hydra.launcher differently, and a sweep has one launcher; "
            "run them one after the other."
        )
    return found


def parser_of(loader: ConfigLoader, master: DictConfig) -> OverridesParser:
    """Return a parser of overrides whose globs match the options available to ``master``."""
    return OverridesParser.create(config_loader=repository_of(loader, master))  # type: ignore[arg-type]


def _swept_experiment(overrides: Sequence[Override]) -> Override | None:
    return next((one for one in overrides if one.key_or_group == EXPERIMENT and one.is_sweep_override()), None)


def check_once_each(overrides: Sequence[Override]) -> None:
    """Raise a ``ConfigError`` if the command line sweeps a key twice, which would drop the first of the sweeps.

    A single value overrides an earlier value of the key, as everywhere in Hydra.
    """
    given: dict[tuple[str, str | None], Override] = {}
    for override in filter(Override.is_sweep_override, overrides):
        before = given.setdefault((override.key_or_group, override.package), override)
        if before is not override:
            raise ConfigError(
                f"{override.key_or_group}: is swept twice, {before.input_line} and {override.input_line}; give all its "
                f"values at once, as in {override.key_or_group}=A,B."
            )


def check_single(hydra: Any, command: Sequence[str]) -> None:
    """Raise a ``ConfigError`` if a single cell is requested of a grid experiment and some of its axes have no value.

    ``hydra`` is the composed ``hydra`` node, ``command`` the command line.
    """
    grids = axes_of_grids(settings_of(OmegaConf.create({"hydra": {"sweeper": hydra.sweeper}})))
    # Unresolved, since a value may be an interpolation.
    overrides: list[str] = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # type: ignore[assignment]
    given = {one.key_or_group for one in OverridesParser.create().parse_overrides(overrides)}
    keys = dict.fromkeys(axis.partition("=")[0].lstrip("+") for axes in grids for axis in axes)
    if left := [key for key in keys if key not in given]:
        name = hydra.runtime.choices.get(EXPERIMENT)
        whole = shlex.join(["python", "-m", "mmq_sweeps", "-m", *command])
        raise ConfigError(
            f"{f'{EXPERIMENT}={name}' if name else 'hydra.sweeper'}: is a grid over {', '.join(keys)}, which needs -m: "
            f"{whole}; for one cell of it give {' '.join(f'{key}=VALUE' for key in left)}"
        )


def axes_of_grids(settings: Mapping[str, Any]) -> list[list[str]]:
    """Return the axes of each grid of ``hydra.sweeper`` as overrides: the shared ``params`` followed by the grid's own.

    Raises a ``ConfigError`` if a setting is unknown, a grid is not a mapping, or an axis is not in command-line syntax.
    """
    if unknown_names := [name for name in settings if name not in (*SETTINGS, "_target_")]:
        raise ConfigError(f"hydra.sweeper.{name}: {unknown('key', name, SETTINGS)}" for name in unknown_names)
    params, grids = settings.get("params"), settings.get("grids")
    if grids is not None and (isinstance(grids, str) or not isinstance(grids, Sequence)):
        raise ConfigError(f"hydra.sweeper.grids={grids}: give a list of mappings from keys to choices.")
    for axes in (params or {}, *(grids or [])):
        if not isinstance(axes, Mapping):
            raise ConfigError(f"hydra.sweeper: {axes!r} is no mapping from keys to choices, such as {{bits: '2,3'}}.")
    return [axes_of({**(params or {}), **axes}) for axes in grids or [{}]]


def axes_of(params: Mapping[str, Any]) -> list[str]:
    """Return the axes ``params`` of a yaml as overrides."""
    return kept_apart(f"{key}={_choices(str(key), choices)}" for key, choices in params.items())


def _choices(key: str, choices: Any) -> str:
    if isinstance(choices, bool):
        return str(choices).lower()
    if isinstance(choices, str | int | float):
        return str(choices)
    kind = "a list" if isinstance(choices, list) else "a mapping" if isinstance(choices, dict) else "nothing"
    raise ConfigError(
        f"hydra.sweeper: the axis {key} is {kind}; write its choices as text, as on the command line: "
        f'{key}: "2,3", or for choices that are lists themselves {key}: "[front],[end]".'
    )


def combinations(overrides: Iterable[Override]) -> list[tuple[str, ...]]:
    """Return every combination of the values of ``overrides``, the last changing fastest; the last override of a key wins."""
    values: dict[tuple[str, str | None], list[str]] = {}
    for override in overrides:
        key = (override.key_or_group, override.package)
        values[key] = _some_values(override)
    return list(product(*values.values()))


def _some_values(override: Override) -> list[str]:
    if values := list(_values(override)):
        return values
    raise ConfigError(f"{override.input_line}: names no value, so there is nothing to run; give at least one value.")


def _values(override: Override) -> Iterator[str]:
    """Yield ``override`` once for each of its values."""
    if not override.is_sweep_override():
        # Verbatim, so that a sweep parses it as a single run does.
        yield str(override.input_line)
    elif override.is_discrete_sweep():
        try:
            values = list(override.sweep_iterator())
        except ValueError as error:  # A range with a step of 0.
            raise ConfigError(f"{override.input_line}: {error}.") from error
        for value in values:
            yield f"{override.get_key_element()}={_text(value)}"
    else:
        raise HydraException(f"{override.input_line}: give choices, a range or a glob")


def _text(value: Any) -> str:
    """Format ``value`` as an override; quote text that would parse as another type, such as the 1 of ``str(1)``."""
    text = Transformer.str(value)
    if isinstance(value, str) and OverridesParser.create().parse_override(f"key={text}").value() != value:
        return QuotedString(value, Quote.single).with_quotes()
    return text
