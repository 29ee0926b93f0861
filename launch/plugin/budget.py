"""Hydra sweeper that searches for the best assignment within a budget: the swept keys are the choices of each part.

It composes a configuration for each choice of a part, and hands the choices to ``launch.search``, which composes cells itself:
an assignment of many units is no product of keys.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from launch.planning.structures import assignment_source
from launch.plugin.sweeper import axes_of, check_once_each, combinations, parser_of, settings_of
from launch.search import choices
from launch.search.settings import Settings, metric_of
from launch.sweep_file import typed
from mmq_sweeps.config.overrides import as_written
from mmq_sweeps.config.sweep import plan, resolved
from mmq_sweeps.errors import ConfigError


class BudgetSweeper(Sweeper):
    """Sweeper of ``conf/hydra/sweeper/budget.yaml``."""

    def __init__(self, **settings: Any) -> None:
        """Ignore ``settings``; ``sweep`` reads them from the configuration."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.master = hydra_context, config
        self.cells_launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        given = settings_of(self.master)
        settings = Settings.of(given)
        parser = parser_of(self.context.config_loader, self.master)
        check_once_each(parser.parse_overrides(arguments))
        overrides = parser.parse_overrides([*axes_of(given.get("params") or {}), *arguments])
        choices.check_axes(_axes(overrides))
        launcher = self.cells_launcher.settings()
        self.cells_launcher.grids = [given]
        source = assignment_source(self.master.hydra)
        (base,) = self.cells_launcher.composed(combinations(_fixed(overrides, parser)))
        base = dict(base) if isinstance(base, dict) else resolved(base)
        # Finds faults of the configuration apart from its choices.
        plan([base], source)
        metric = metric_of(settings, base["task"])
        options = {
            part: choices.read(
                part, self.cells_launcher.composed(combinations(_fixed(overrides, parser, part))), source
            )
            for part in choices.searched_parts(base)
        }
        # Imported here because it loads torch, which composing does without.
        from launch.search.cells import Question
        from launch.search.driver import search

        question = Question(base, settings, options, source, metric)
        if status := search(question, launcher, typed(sys.argv)):
            # As after a sweep, all that is to be said has been said.
            raise SystemExit(status)
        return []


def check_multirun(hydra: Any, command: Sequence[str]) -> None:
    """Raise a ``ConfigError`` if a search is asked for without ``-m``; ``hydra`` is the composed ``hydra`` node."""
    if str(hydra.sweeper.get("_target_")).endswith(f".{BudgetSweeper.__name__}"):
        whole = shlex.join(["python", "-m", "mmq_sweeps", "-m", *as_written(command)])
        raise ConfigError(f"hydra/sweeper=budget: searches among many cells, which needs -m: {whole}")


def _axes(overrides: Sequence[Override]) -> list[tuple[str, str]]:
    """Return the key of every swept override, and the override as it was written."""
    swept = [one for one in overrides if one.is_sweep_override()]
    lines = as_written(str(one.input_line) for one in swept)
    return [(one.key_or_group, line) for one, line in zip(swept, lines, strict=True)]


def _fixed(overrides: Sequence[Override], parser: OverridesParser, part: str | None = None) -> list[Override]:
    """Return ``overrides`` with the first value of each swept one, except those with the choices of ``part``."""
    return [
        parser.parse_override(combinations([one])[0][0])
        if one.is_sweep_override() and (part is None or choices.part_of(one.key_or_group) not in ("", part))
        else one
        for one in overrides
    ]
