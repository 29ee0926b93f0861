"""Compare metric values: which is better, the share of full precision, which cell to prefer.

Frontier, recommendation and report share these rules, so they name the same cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.cells import Cells
from analysis.cells.columns import METRIC
from mmq_sweeps.reporting.table import metric_label

OTHER_BITS = {"bpw_paper": "bpw_exact", "bpw_exact": "bpw_paper"}


@dataclass(frozen=True)
class Quality:
    """A ``metric`` and whether ``higher`` values are better."""

    metric: str
    higher: bool = True

    @staticmethod
    def of(family: Cells, metric: str) -> Quality:
        return Quality(metric, family.higher_is_better(metric))

    @property
    def column(self) -> str:
        return f"{METRIC}{self.metric}"

    @property
    def sign(self) -> float:
        return 1.0 if self.higher else -1.0

    @property
    def label(self) -> str:
        """The display name: ``CIDEr``, ``wer (lower is better)``."""
        name = metric_label(self.metric)
        return name if self.higher else f"{name} (lower is better)"

    def score(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the metric of ``rows``, negated if lower is better."""
        return self.sign * rows[self.column].to_numpy(dtype=np.float64)

    def full(self, rows: pd.DataFrame) -> float | None:
        """Return full precision's value among ``rows``, the median of several; None if none has one."""
        known = self._of_full(rows)
        return None if known.empty else float(known.median())

    def baseline(self, rows: pd.DataFrame) -> int | None:
        """Return the index of full precision in ``rows``; of several cells the one nearest to the median."""
        known = self._of_full(rows)
        return None if known.empty else int((known - known.median()).abs().idxmin())

    def _of_full(self, rows: pd.DataFrame) -> pd.Series:
        return rows.loc[rows["method"] == "none", self.column].dropna()

    def limit(self, full: float, share: float) -> float | None:
        """Return the worst value that keeps ``share`` of full precision's value ``full``; ``None`` unless ``full`` > 0.

        If lower is better, keeping 98% means at most ``full`` / 0.98.
        """
        if not full > 0:
            return None
        if self.higher:
            return share * full
        return full / share if share > 0 else np.inf

    def keeps(self, rows: pd.DataFrame, limit: float) -> pd.Series:
        return rows[self.column] >= limit if self.higher else rows[self.column] <= limit

    def against(self, figure: float, full: float | None) -> str:
        """Format ``95.0% of full precision`` or ``1.20 times full precision's``; empty if the ratio is undefined."""
        if full is None or not full > 0 or not np.isfinite(figure):
            return ""
        return (
            f"{figure / full:.1%} of full precision" if self.higher else f"{figure / full:.2f} times full precision's"
        )

    def budget(self, full: float, share: float) -> str:
        """Describe ``limit`` in words."""
        if self.higher:
            return f"at least {share:.0%} of full precision"
        return f"at most {self.limit(full, share):.4f}, which is full precision's {full:.4f} / {share:g}"

    def fewest_bits(self, rows: pd.DataFrame, bpw: str = "bpw_paper") -> pd.DataFrame:
        """Sort ``rows`` by bits per weight, then quality, best first, then the other definition of bits per weight."""
        return self._sorted(rows, [(bpw, 1.0), (self.column, -self.sign), (OTHER_BITS[bpw], 1.0)])

    def best(self, rows: pd.DataFrame, bpw: str = "bpw_paper") -> pd.DataFrame:
        """Sort ``rows`` by quality, best first, then by bits per weight, fewest first."""
        return self._sorted(rows, [(self.column, -self.sign), (bpw, 1.0), (OTHER_BITS[bpw], 1.0)])

    @staticmethod
    def _sorted(rows: pd.DataFrame, keys: list[tuple[str, float]]) -> pd.DataFrame:
        there = [sign * rows[name].to_numpy(dtype=np.float64) for name, sign in keys if name in rows]
        return rows.iloc[np.lexsort(there[::-1])]
