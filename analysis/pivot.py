"""A metric by method and parts against bits, as Markdown: the whole of a grid on one page."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def markdown(table_rows: list[Row]) -> str:
    """One table a model, task and metric; a line a method and choice of parts, a column a bit-width.

    Cells whose parts have different bit-widths have no place in such a table and are left out, which is said below it.
    """
    done = [row for row in table_rows if row["status"] == "done"]
    families = dict.fromkeys((row["model"], row["task"], metric) for row in done for metric in row["metrics"])
    tables = []
    for model, task, metric in families:
        family = [row for row in done if (row["model"], row["task"]) == (model, task)]
        tables.append(_pivot(family, model, task, metric))
    return "\n\n".join(tables)


def _pivot(family: list[Row], model: str, task: str, metric: str) -> str:
    placed: dict[tuple[str, str], dict[str, float]] = {}
    left_out = 0
    full = next((row["metrics"][metric]["value"] for row in family if not row["bits"]), None)
    for row in family:
        widths = set(row["bits"].values())
        if len(widths) > 1:
            left_out += 1
        elif widths:
            line = placed.setdefault((row["method"], " + ".join(row["bits"])), {})
            line[widths.pop()] = row["metrics"][metric]["value"]
    columns = sorted({width for line in placed.values() for width in line}, key=_width)
    head = ["method", "parts", *columns]
    lines = [
        f"{model}, {task}, {metric}; full precision {'not measured' if full is None else f'{full:.4f}'}",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * 2 + "---:|" * len(columns),
    ]
    for (method, parts), values in sorted(placed.items(), key=lambda item: (item[0][1], item[0][0])):
        shown = [f"{values[width]:.4f}" if width in values else "" for width in columns]
        lines.append("| " + " | ".join([method, parts, *shown]) + " |")
    if left_out:
        lines += ["", f"{left_out} cells of mixed bit-widths are not shown."]
    return "\n".join(lines)


def _width(label: str) -> tuple[int, str]:
    return int(label.split()[0]), label
