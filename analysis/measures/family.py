"""Cells that can be compared, and what a report and its figures need of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from analysis.cells import Cells
from analysis.measures.frontier import Frontier, frontiers
from analysis.measures.importance import Importance, importances
from analysis.measures.quality import Quality
from analysis.measures.sensitivity import Sensitivity, sensitivities


@dataclass(frozen=True)
class Family:
    """Comparable ``cells`` by one ``metric``, and what several figures need of them, found once."""

    title: str
    cells: Cells
    metric: str

    @cached_property
    def quality(self) -> Quality:
        return Quality.of(self.cells, self.metric)

    @cached_property
    def methods(self) -> list[str]:
        return [name for name in sorted(self.cells.frame["method"].unique()) if name != "none"]

    @cached_property
    def frontiers(self) -> list[Frontier]:
        """Each method's."""
        return frontiers(self.cells, self.metric, by_method=True) if self.methods else []

    @cached_property
    def sensitivity(self) -> Sensitivity | None:
        """``None`` where there is no full precision to measure damage from."""
        try:
            return sensitivities(self.cells, self.metric)[0]
        except ValueError:
            return None

    @cached_property
    def importance(self) -> tuple[list[Importance], str]:
        """Each method's, or none and a sentence on why it cannot be told."""
        try:
            return importances(self.cells, self.metric), ""
        except ValueError as error:
            return [], str(error)


def families(cells: Cells, metric: str | None = None) -> list[Family]:
    """The families of finished cells that have ``metric``; by each one's first metric if none is named."""
    done = cells.of(cells.frame[cells.frame["status"] == "done"])
    found = [Family(title, family, metric or (family.metrics or [""])[0]) for title, family in done.families()]
    return [family for family in found if family.metric in family.cells.metrics]
