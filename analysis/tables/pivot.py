"""Markdown tables of a metric: method and parts against bits, a whole grid on a page."""

from __future__ import annotations

from typing import Any

from mmq_sweeps.identity.assignment import is_mixed
from mmq_sweeps.reporting.table import WARNED, by_family, definition_note, warning_notes

Row = dict[str, Any]


def markdown(table_rows: list[Row]) -> str:
    """Return a table per family of comparable cells and metric: a line per method and set of parts, a column per bit-width.

    Cells whose parts, or units of a part, have different bit-widths are left out; a line below the table counts them.
    """
    return "\n\n".join(
        _pivot(family, named, metric)
        for named, family in by_family(table_rows).items()
        for metric in dict.fromkeys(name for row in family for name in row["metrics"])
    )


def _pivot(family: list[Row], named: str, metric: str) -> str:
    placed: dict[tuple[str, str], dict[str, list[str]]] = {}
    left_out = 0
    measured = [row for row in family if metric in row["metrics"]]
    for row in measured:
        widths = set(row["bits"].values())
        if len(widths) > 1 or any(map(is_mixed, row["parts"].values())):
            left_out += 1
        elif widths:
            line = placed.setdefault((row["label"], " + ".join(row["bits"])), {})
            # Cells that differ in other settings share a table cell.
            line.setdefault(widths.pop(), []).append(_figure(row["metrics"][metric]))
    columns = sorted({width for line in placed.values() for width in line}, key=_width)
    head = ["method", "parts", *columns]
    full = " and ".join(_figure(row["metrics"][metric]) for row in measured if not row["bits"]) or "not measured"
    better = "" if all(row["metrics"][metric]["higher_is_better"] for row in measured) else "; lower is better"
    lines = [
        _escaped(f"{named}, {metric}; full precision {full}{better}"),
        "",
        _line(head),
        "|" + "---|" * 2 + "---:|" * len(columns),
    ]
    for (method, parts), values in sorted(placed.items(), key=lambda item: (item[0][1], item[0][0])):
        lines.append(_line([method, parts, *(", ".join(values.get(width, [])) for width in columns)]))
    if left_out:
        lines += ["", f"{left_out} cells of mixed bit-widths are not shown."]
    warned = warning_notes((row, metric, row["metrics"][metric]) for row in measured)
    notes = [*definition_note(metric, [row["metrics"][metric].get("definition") for row in measured]), *warned]
    if notes:
        lines += ["", *(f"- {_escaped(text)}" for text in notes)]
    return "\n".join(lines)


def _figure(metric: dict[str, Any]) -> str:
    shown = "none" if metric["value"] is None else f"{metric['value']:.4f}"
    return shown + (WARNED if metric.get("warnings") else "")


def _line(texts: list[str]) -> str:
    return "| " + " | ".join(map(_escaped, texts)) + " |"


def _escaped(text: str) -> str:
    """Escape Markdown in users' names."""
    return "".join(f"\\{sign}" if sign in "\\|*<`" else sign for sign in text)


def _width(label: str) -> tuple[int, str]:
    return int(label.split()[0]), label
