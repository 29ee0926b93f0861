"""Render the page as HTML: text as text, charts and tables as JSON that an inline script draws. Nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from analysis.figures.plots import XY, Bars, Heatmap, Panel, Plot, Series, Space
from analysis.report.blocks import Page, Samples, Section, Sentences, Table, plain

ASSETS = Path(__file__).parent
# The page is self-contained: block every external request.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
KINDS: dict[type, str] = {XY: "xy", Heatmap: "heatmap", Bars: "bars"}
# Decimals of drawn numbers: more are invisible and enlarge the page.
DRAWN_DIGITS = 7


def render(page: Page) -> str:
    """Return the whole HTML file."""
    drawn: list[dict[str, Any]] = []
    body = "\n".join(_section(number, section, drawn) for number, section in enumerate(page.sections))
    links = "".join(
        f'<a href="#s{number}">{escape(section.title)}</a>'
        for number, section in enumerate(page.sections)
        if section.level == 2
    )
    style, script = ((ASSETS / name).read_text() for name in ("page.css", "page.js"))
    # "</script>" inside a text would end the data.
    data = json.dumps(drawn, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(page.title)}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{escape(page.title)}</h1><nav>{links}</nav></header>
<main>
{body}
</main>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="drawn">{data}</script>
<script>
{script}</script>
</body>
</html>
"""


def _section(number: int, section: Section, drawn: list[dict[str, Any]]) -> str:
    blocks = "\n".join(part for block in section.blocks for part in RENDER[type(block)](block, drawn))
    return f'<section id="s{number}"><h{section.level}>{escape(section.title)}</h{section.level}>\n{blocks}\n</section>'


def _sentences(block: Sentences, _drawn: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a list; a first line that ends in a colon becomes its title."""
    if not block.lines:
        return
    first, *rest = block.lines
    kind = ' class="warning"' if block.warning else ""
    if rest and first.endswith(":"):
        yield f"<p{kind}><strong>{escape(first[:-1])}</strong></p>"
        lines = rest
    elif not rest:
        yield f"<p{kind}>{escape(first)}</p>"
        return
    else:
        lines = [first, *rest]
    yield f"<ul{kind}>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _chart(plot: Plot, drawn: list[dict[str, Any]]) -> Iterator[str]:
    panels = [_panel(panel) for panel in plot.panels if not isinstance(panel, Space)]
    title = plot.title.split(": ")[0]
    drawn.append({"kind": "chart", "panels": panels})
    yield f'<figure data-drawn="{len(drawn) - 1}"><figcaption>{escape(title)}</figcaption></figure>'
    yield from (f'<p class="quiet caption">{escape(note)}</p>' for note in plot.notes)


def _panel(panel: Panel) -> dict[str, Any]:
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
    return round(value, DRAWN_DIGITS) if isinstance(value, float) else value


def _table(table: Table, drawn: list[dict[str, Any]]) -> Iterator[str]:
    rows = [[round(value, 9) if isinstance(value, float) else value for value in row] for row in table.rows]
    columns = [asdict(column) for column in table.columns]
    marks = {f"{row},{column}": text for (row, column), text in table.marks.items()}
    drawn.append({"kind": "table", "columns": columns, "rows": rows, "filters": list(table.filters), "marks": marks})
    yield f'<p class="quiet caption">{escape(table.name)}</p>'
    yield f'<div class="table" data-drawn="{len(drawn) - 1}" aria-label="{escape(table.name)}"></div>'


def _samples(block: Samples, _drawn: list[dict[str, Any]]) -> Iterator[str]:
    cards = []
    for row in block.rows:
        image = f'<img src="{escape(row.image)}" alt="{escape(row.id)}">' if row.image else ""
        asked = f"<p><strong>{escape(row.asked)}</strong></p>" if row.asked else ""
        right = f'<p class="quiet">Right: {escape(row.right[0])}{_more(row.right)}</p>' if row.right else ""
        said = "".join(
            f"<dt>{escape(name)}{'' if answer.score is None else f' · {answer.score:.3f}'}</dt>"
            f'<dd class="{"same" if answer.same else "other"}">{escape(answer.text) or "(nothing)"}</dd>'
            for name, answer in zip(block.cells, row.answers, strict=True)
        )
        cards.append(
            f'<article>{image}<div><p class="quiet">{escape(row.id)}</p>{asked}{right}<dl>{said}</dl></div></article>'
        )
    yield '<div class="samples">' + "".join(cards) + "</div>"


def _more(right: Sequence[str]) -> str:
    return f" (and {len(right) - 1} more)" if len(right) > 1 else ""


RENDER: dict[type, Callable[[Any, list[dict[str, Any]]], Iterator[str]]] = {
    Sentences: _sentences,
    Plot: _chart,
    Table: _table,
    Samples: _samples,
}
