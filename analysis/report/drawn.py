"""Convert a figure's panels to the data that the page's scripts draw."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from analysis.figures.plots import XY, Bars, Heatmap, Panel, Series
from analysis.output import plain

KINDS: dict[type, str] = {XY: "xy", Heatmap: "heatmap", Bars: "bars"}
# Decimals of drawn numbers: more are invisible and enlarge the page.
DIGITS = 7


def panel_data(panel: Panel) -> dict[str, Any]:
    """Return the panel's fields for JSON, with its kind and its series."""
    told = {name: value for name, value in asdict(panel).items() if name not in ("series", "groups")}
    if isinstance(panel, XY | Bars):
        told["series"] = [_series(one) for one in (panel.series if isinstance(panel, XY) else panel.groups)]
    return {"kind": KINDS[type(panel)], **_rounded(told)}


def _series(one: Series) -> dict[str, Any]:
    told: dict[str, Any] = _rounded(asdict(one))
    return {**told, "x": list(told["x"]), "style": one.style or one.label}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple | range):
        return [_rounded(one) for one in value]
    value = plain(value)
    return round(value, DIGITS) if isinstance(value, float) else value
