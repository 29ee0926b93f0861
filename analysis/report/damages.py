"""Damage by part and unit as heat maps: a map a method, a row a part, block group or layer kind, a column a bit-width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from analysis.cells import Cells
from analysis.cells.columns import BITS, WHOLE
from analysis.cells.selections import Choice, choices, narrowed
from analysis.figures.plots import Heatmap
from analysis.measures.sensitivity import Sensitivity, with_common_groups
from analysis.report.blocks import Drawn
from analysis.report.drawn import panel_data
from mmq_sweeps.identity.assignment import BLOCK_GROUPS, FULL_PRECISION_BITS, LAYER_KINDS, part_order

# The method and the choice of a cell that quantizes one part alone.
Key = tuple[str, Choice]


def damages(told: Sensitivity, cells: Cells, numbers: Mapping[tuple[str, str], int]) -> Drawn | None:
    """Return the maps, with a text and a cell's number for every square; ``None`` if no cell quantizes one selection alone.

    ``numbers`` are those of the cells on the page. Damage is in percent of full precision, so that metrics compare, unless
    such a share means nothing.
    """
    alone = with_common_groups(told.alone)
    if alone.empty:
        return None
    share = told.quality.limit(told.full, 1.0) is not None
    scale = 100 / told.full if share else 1.0
    label = f"% of full precision's {told.quality.label} lost" if share else f"{told.quality.label} lost"
    widths = sorted(set(alone["bits"]))
    named = _alone(cells, numbers)
    maps, notes, places = [], [], []
    for method, rows in alone.groupby("method"):
        by_unit = {(row["part"], row["blocks"], row["layers"], row["bits"]): row for row in rows.to_dict("records")}
        units = sorted({key[:3] for key in by_unit}, key=_order)
        lines = [[by_unit.get((*unit, width)) for width in widths] for unit in units]
        values = [[math.nan if row is None else scale * row["damage"] for row in line] for line in lines]
        columns = [f"{width:g}" for width in widths]
        maps.append(Heatmap(str(method), "bits", "", columns, list(map(_unit, units)), values, label, higher=False))
        notes.append([["" if row is None else _note(row, told, share) for row in line] for line in lines])
        places.append([[None if row is None else named.get(_key(row)) for row in line] for line in lines])
    content = {"panels": [panel_data(one) for one in maps], "notes": notes, "cells": places}
    return Drawn("damages", content, "Damage of one selection alone")


def _order(unit: tuple[str, str, str]) -> tuple[Any, ...]:
    """Sort a part before its block groups, and these before its layer kinds, from front to end."""
    part, blocks, layers = unit
    places = [BLOCK_GROUPS.index(name) for name in blocks.split("+") if name in BLOCK_GROUPS]
    kinds = [LAYER_KINDS.index(name) for name in layers.split("+") if name in LAYER_KINDS]
    whole = (blocks in ("", WHOLE["blocks"]), layers in ("", WHOLE["layers"]))
    return part_order(part), not all(whole), not whole[1], places, kinds


def _unit(unit: tuple[str, str, str]) -> str:
    part, blocks, layers = unit
    return " ".join([part, *narrowed(blocks, layers)])


def _note(row: Mapping[str, Any], told: Sensitivity, share: bool) -> str:
    interval = f" [{row['low']:.4f}, {row['high']:.4f}]" if "low" in row else ""
    of_full = f", {100 * row['damage'] / told.full:.1f} % of full precision" if share else ""
    name = f"{row['method']} {_unit((row['part'], row['blocks'], row['layers']))} {row['bits']:g} alone"
    return f"{name}\ncosts {told.quality.label} {row['damage']:.4f}{interval}{of_full}"


def _key(row: Mapping[str, Any]) -> Key:
    return row["method"], Choice(row["part"], row["bits"], row["blocks"], row["layers"], row["group"])


def _alone(cells: Cells, numbers: Mapping[tuple[str, str], int]) -> dict[Key, int]:
    """Map every cell that quantizes one part alone to its number on the page."""
    frame = cells.frame
    bits = frame[[f"{BITS}{part}" for part in cells.parts]]
    single = frame[(bits < FULL_PRECISION_BITS).sum(axis=1) == 1]
    return {
        (row["method"], *choices(row, cells.parts)): numbers[row["id"], row["where"]]
        for row in single.to_dict("records")
    }
