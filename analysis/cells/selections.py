"""Describe a cell's quantized parts in words, and pick the rows whose parts are quantized as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.cells.columns import BITS, LOADS_IN, SELECTION, WARNINGS, WHOLE
from mmq_sweeps.identity.assignment import (
    BLOCK_GROUPS,
    FULL_PRECISION_BITS,
    LAYER_KINDS,
    bits_label,
    part_order,
    rules_in,
)
from mmq_sweeps.identity.cell import QUANTIZED_ELSEWHERE
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.identity.loads_in import parsed, shown


def quantized_elsewhere(rows: pd.DataFrame) -> pd.Series:
    """Return a mask of the cells whose checkpoint was quantized before."""
    return rows["method"].str.startswith(QUANTIZED_ELSEWHERE)


def parts_in(columns: Iterable[str]) -> list[str]:
    """Return the parts that have bits among ``columns``, vision first."""
    return sorted((name.removeprefix(BITS) for name in columns if name.startswith(BITS)), key=part_order)


def assignment(row: pd.Series) -> str:
    """Describe a cell in words, with own group sizes and partial selections.

    Examples: ``gptq vision 3 connector 4 g64 language 8 (front mlp)``, ``gptq vision 4 language attention 4, mlp 3``.
    """
    told = []
    for part in parts_in(row.index):
        bits = row[f"{BITS}{part}"]
        if selection := _text(row.get(f"{SELECTION}{part}")):
            told.append(f"{part} {bits_label(json.loads(selection))}")
            continue
        if pd.isna(bits) or bits == FULL_PRECISION_BITS:
            continue
        own = (_text(row.get(f"{name}.{part}")) for name in ("blocks", "layers", "group"))
        told.append(Choice(part, _plain(bits), *own).label)
    if not told and str(row["method"]).startswith(QUANTIZED_ELSEWHERE):
        return str(row["method"])
    return f"{row['method']} {' '.join(told)}" if told else "full precision"


class Choice(NamedTuple):
    """A quantized part of a cell: block groups and layer kinds are joined by ``+``, ``group`` is its own group size.

    ``selection`` is JSON of a selection that these do not describe.
    """

    part: str
    bits: float
    blocks: str
    layers: str
    group: str
    selection: str = ""

    @property
    def label(self) -> str:
        """``connector 3``, or with its own group size and partial selection ``connector 3 g64 (front mlp)``."""
        own = f" g{self.group}" if self.group.isdigit() else f" {self.group}" if self.group else ""
        places = narrowed(self.blocks, self.layers)
        return f"{self.part} {self.bits}{own}" + (f" ({' '.join(places)})" if places else "")


def choices(row: Mapping[str, Any], parts: Iterable[str]) -> frozenset[Choice]:
    """Return the choice of every part that the cell ``row`` quantizes."""
    found = []
    for part in parts:
        bits = row[f"{BITS}{part}"]
        if bits < FULL_PRECISION_BITS:  # False if they are missing.
            columns = (f"blocks.{part}", f"layers.{part}", f"group.{part}", f"{SELECTION}{part}")
            found.append(
                Choice(part, int(bits) if bits == int(bits) else bits, *(_text(row.get(name)) for name in columns))
            )
    return frozenset(found)


def narrowed(blocks: str, layers: str) -> list[str]:
    """Return those of the two texts that do not stand for all of a part."""
    return [text for text, name in ((blocks, "blocks"), (layers, "layers")) if text not in ("", WHOLE[name])]


def _plain(bits: float) -> float:
    """Return whole bits as an int, and the mean of several widths with two digits."""
    return int(bits) if bits == int(bits) else round(bits, 2)


def loaders_of(row: Mapping[str, Any] | pd.Series) -> list[str] | None:
    """Return the loaders of a cell; None if they are not known."""
    text = _text(row.get(LOADS_IN))
    return parsed(text) if text else None


def loaders_shown(row: Mapping[str, Any] | pd.Series) -> str:
    """Format the loaders of a cell for a table; empty if they are not known."""
    return shown(loaders_of(row) or ())


def warnings_of(row: Mapping[str, Any] | pd.Series, metric: str) -> list[str]:
    """Return the warnings about a cell's ``metric``."""
    told = row.get(f"{WARNINGS}{metric}")
    return told.split("\n") if isinstance(told, str) else []


def methods_in(rows: pd.DataFrame) -> list[str]:
    """Return the methods of quantized cells, by name."""
    return sorted(set(rows["method"]) - {"none"})


def of_method(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return the cells of ``method`` and of full precision."""
    return rows[rows["method"].isin([method, "none"])]


def any_mixed(rows: pd.DataFrame, parts: Iterable[str]) -> pd.Series:
    """Return a mask of the cells of which ``mixed`` is true of any of ``parts``."""
    found = pd.Series(data=False, index=rows.index)
    for part in parts:
        found |= mixed(rows, part)
    return found


def mixed(rows: pd.DataFrame, part: str) -> pd.Series:
    """Return a mask of the cells that give units of ``part`` several settings, or select them by number."""
    column = f"{SELECTION}{part}"
    return rows[column].fillna("") != "" if column in rows else pd.Series(data=False, index=rows.index)


def slots(selection: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rule of every block group and layer kind that a selection quantizes as a whole."""
    rules = rules_in(json.loads(selection)) if selection else []
    return {
        (group, kind): dict(rule)
        for rule in rules
        if "units" not in rule
        for group in rule.get("blocks", BLOCK_GROUPS)
        for kind in rule.get("layers", LAYER_KINDS)
    }


def by_number(selection: str) -> dict[str, dict[str, Any]]:
    """Return the rule of every unit that a selection names by number."""
    rules = rules_in(json.loads(selection)) if selection else []
    return {unit: dict(rule) for rule in rules for unit in rule.get("units", ())}


def mixes_methods(method: str) -> bool:
    """Return true for the name of several methods: ``rtn (vision), gptq (connector, language)``."""
    return "), " in method


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def whole(rows: pd.DataFrame, parts: Sequence[str]) -> pd.Series:
    """Return a mask of the cells that quantize each of ``parts`` as a whole in one width or not at all, in usual groups.

    The usual group size is the most common of the part within the method. Views that identify a cell by the bits of its
    parts use only these cells: bits do not describe a partial selection, several widths or another group size.
    """
    kept = pd.Series(data=True, index=rows.index)
    for part in parts:
        low = rows[f"{BITS}{part}"] < FULL_PRECISION_BITS
        kept &= ~mixed(rows, part)
        for what, everything in WHOLE.items():
            if f"{what}.{part}" in rows:
                kept &= ~low | (rows[f"{what}.{part}"] == everything) | (part in END_PARTS)
        if f"group.{part}" in rows:
            for _, of_method in rows[low].groupby("method"):
                sizes = of_method[f"group.{part}"].fillna("")
                # The method's own size, the empty string, sorts first and wins a tie.
                common = sizes.value_counts().sort_index().idxmax()
                kept.loc[of_method.index[sizes != common]] = False
    return kept
