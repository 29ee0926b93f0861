"""Families of comparable cells, with the measures that report and figures share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from analysis.cells import Cells
from analysis.cells.selections import methods_in
from analysis.measures.flips import Flips, flips_of
from analysis.measures.frontier import Frontier, frontiers
from analysis.measures.importance import Importance, importances
from analysis.measures.quality import Quality
from analysis.measures.sensitivity import Sensitivity, sensitivities


@dataclass(frozen=True)
class Family:
    """Comparable ``cells`` judged by a single ``metric``; each measure is computed once, on first use."""

    title: str
    cells: Cells
    metric: str

    @cached_property
    def quality(self) -> Quality:
        return Quality.of(self.cells, self.metric)

    @cached_property
    def methods(self) -> list[str]:
        return methods_in(self.cells.frame)

    @cached_property
    def flips(self) -> tuple[Flips | None, str]:
        """The answers changed from full precision; or None and the reason."""
        try:
            return flips_of(self.cells, self.metric), ""
        except ValueError as error:
            return None, str(error)

    @cached_property
    def overall(self) -> Frontier:
        """The frontier of all methods."""
        return frontiers(self.cells, self.metric)[0]

    @cached_property
    def frontiers(self) -> list[Frontier]:
        """The frontier of each method; empty if no quantized cell has the metric and its bits per weight."""
        try:
            return frontiers(self.cells, self.metric, by_method=True)
        except ValueError:
            return []

    @cached_property
    def sensitivity(self) -> Sensitivity | None:
        """Damage by part, pair and method; ``None`` without a full-precision cell to measure it from."""
        try:
            return sensitivities(self.cells, self.metric)[0]
        except ValueError:
            return None

    @cached_property
    def importance(self) -> tuple[list[Importance], str]:
        """The importance of each method; or an empty list and the reason."""
        try:
            return importances(self.cells, self.metric), ""
        except ValueError as error:
            return [], str(error)


def families(cells: Cells, metric: str | None = None) -> list[Family]:
    """List the families of finished cells that have ``metric``; defaults to each family's first metric."""
    found = [Family(title, own, metric or own.first_metric) for title, own in cells.finished.families()]
    return [family for family in found if family.metric in family.cells.metrics]
