"""Tables of a store for documents: of each metric, method and parts against bits, so that a whole grid fits on a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmq_sweeps.identity.assignment import is_mixed, part_order
from mmq_sweeps.reporting.table import WARNED, by_family, definition_note, failures, metric_label, warning_notes

Row = dict[str, Any]
JOINED = " + "


@dataclass(frozen=True)
class Grid:
    """A table: ``lines`` below ``heads``, of which the first ``texts`` columns are texts and the others numbers."""

    caption: str
    heads: Sequence[str]
    lines: Sequence[Sequence[str]]
    texts: int
    notes: Sequence[str] = ()


def grids(table_rows: Sequence[Row]) -> Iterator[Grid]:
    """Yield a table per family of comparable cells and metric: a line per method and set of parts, a column per bit-width.

    Cells whose parts, or units of a part, have different bit-widths follow in a table of the family, a line each, below full
    precision. The last table of a family says what failed.
    """
    families = by_family(table_rows)
    for named, family in families.items():
        metrics = list(dict.fromkeys(name for row in family for name in row["metrics"]))
        several = any(map(_several_widths, family))
        found = [_pivot(family, named, metric) for metric in metrics]
        if several:
            found = [grid for grid in found if grid.lines or grid.notes]
            rows = [row for row in family if not row["bits"] or _several_widths(row)]
            found.append(_each(rows, metrics, named))
        failed = failures(row for row in table_rows if row["family"] == named)
        found[-1] = replace(found[-1], notes=[*found[-1].notes, *failed])
        yield from found


def markdown(table_rows: Sequence[Row]) -> str:
    """Return the tables as Markdown."""
    return "\n\n".join(map(_markdown, grids(table_rows)))


def _several_widths(row: Row) -> bool:
    return len(set(row["bits"].values())) > 1 or any(map(is_mixed, row["parts"].values()))


def _pivot(family: Sequence[Row], named: str, metric: str) -> Grid:
    placed: dict[tuple[str, str], dict[str, list[str]]] = {}
    measured = [row for row in family if metric in row["metrics"]]
    for row in measured:
        if row["bits"] and not _several_widths(row):
            line = placed.setdefault((row["label"], JOINED.join(row["bits"])), {})
            # Cells that differ in other settings share a table cell.
            line.setdefault(next(iter(row["bits"].values())), []).append(figure(row["metrics"][metric]))
    columns = sorted({width for line in placed.values() for width in line}, key=_width)
    full = " and ".join(figure(row["metrics"][metric]) for row in measured if not row["bits"]) or "not measured"
    better = "" if all(row["metrics"][metric]["higher_is_better"] for row in measured) else "; lower is better"
    lines = [
        [method, parts, *(", ".join(values.get(width, [])) for width in columns)]
        for (method, parts), values in sorted(placed.items(), key=lambda item: (_parts_order(item[0][1]), item[0][0]))
    ]
    definitions = definition_note(metric, [row["metrics"][metric].get("definition") for row in measured])
    warned = warning_notes((row, metric, row["metrics"][metric]) for row in measured)
    caption = f"{named}, {metric_label(metric)}; full precision {full}{better}"
    return Grid(caption, ["method", "parts", *columns], lines, 2, [*definitions, *warned])


def _each(rows: Sequence[Row], metrics: Sequence[str], named: str) -> Grid:
    """Return a table with a line for each of ``rows``."""
    parts = sorted({part for row in rows for part in row["bits"]}, key=part_order)
    heads = ["method", *parts, *(metric_label(name) for name in metrics), "bits per weight", "MB"]
    lines = [
        [
            row["label"],
            *(row["bits"].get(part, "16") for part in parts),
            *(figure(row["metrics"][name]) if name in row["metrics"] else "" for name in metrics),
            f"{row['bpw_paper']:.2f}",
            f"{row['size_bytes'] / 1e6:.2f}",
        ]
        for row in rows
    ]
    return Grid(f"{named}; cells of several bit-widths", heads, lines, 1)


def figure(metric: dict[str, Any]) -> str:
    """Format a metric's value, with a mark if it has a warning."""
    shown = "none" if metric["value"] is None else f"{metric['value']:.4f}"
    return shown + (WARNED if metric.get("warnings") else "")


def _markdown(grid: Grid) -> str:
    lines = [_escaped(grid.caption), "", _line(grid.heads)]
    lines.append("|" + "---|" * grid.texts + "---:|" * (len(grid.heads) - grid.texts))
    lines += map(_line, grid.lines)
    if grid.notes:
        lines += ["", *(f"- {_escaped(text)}" for text in grid.notes)]
    return "\n".join(lines)


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escaped, texts)) + " |"


def _escaped(text: str) -> str:
    """Escape Markdown in users' names."""
    return "".join(f"\\{sign}" if sign in "\\|*<`" else sign for sign in text)


def _parts_order(joined: str) -> tuple[Any, ...]:
    """Sort parts alone before several together, and as a model runs them."""
    parts = joined.split(JOINED)
    return len(parts), [part_order(part) for part in parts]


def _width(label: str) -> tuple[int, str]:
    return int(label.split()[0]), label
