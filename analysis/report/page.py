"""Render the page as HTML: text as text, charts and tables as JSON that inline scripts draw. Nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from analysis.figures.plots import Plot, Space
from analysis.report.blocks import (
    Block,
    Doubts,
    Drawn,
    More,
    Page,
    Samples,
    Section,
    Sentences,
    Table,
)
from analysis.report.columns import short_answers
from analysis.report.drawn import panel_data

ASSETS = Path(__file__).parent
LIBRARY = ASSETS / "vendor" / "plot.min.js"
# In this order: each uses those before it.
SCRIPTS = ("base.js", "charts.js", "overview.js", "cell.js", "table.js", "samples.js", "main.js")
# Values for the scripts, in the order of the elements that they draw in.
Contents = list[dict[str, Any]]


def render(page: Page) -> str:
    """Return the whole HTML file."""
    drawn: Contents = []
    body = "\n".join(_section(number, section, drawn) for number, section in enumerate(page.sections))
    links = "".join(
        f'<a href="#s{number}">{escape(section.title)}</a>'
        for number, section in enumerate(page.sections)
        if section.level == 2
    )
    main = f"""<header><div><h1>{escape(page.title)}</h1><p class="quiet">{escape(page.summary)}</p></div>
<nav aria-label="Sections">{links}</nav></header>
<main>
{body}
</main>
<aside id="cell" aria-label="Pinned cell" tabindex="-1" hidden></aside>
"""
    return _document(page.title, main, {**page.data, "drawn": drawn})


def _document(title: str, body: str, data: dict[str, Any]) -> str:
    """Return a self-contained HTML file with the plotting library, our scripts, and ``data`` for them."""
    code = "\n".join((ASSETS / "page" / name).read_text() for name in SCRIPTS)
    inline = [LIBRARY.read_text(), f'"use strict";\n(() => {{\n{code}}})();\n']
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {' '.join(map(_hash, inline))}"
    # "</script>" inside a text would end the data.
    content = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")
    tags = "\n".join(f"<script>{script}</script>" for script in inline)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{(ASSETS / "page.css").read_text()}</style>
</head>
<body>
{body}<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="data">{content}</script>
{tags}
</body>
</html>
"""


def _hash(script: str) -> str:
    """Return the source by which the page's policy allows an inline ``script``, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _section(number: int, section: Section, drawn: Contents) -> str:
    blocks = _joined(section.blocks, drawn)
    return f'<section id="s{number}"><h{section.level}>{escape(section.title)}</h{section.level}>\n{blocks}\n</section>'


def _joined(blocks: Iterable[Block], drawn: Contents) -> str:
    return "\n".join(part for block in blocks for part in RENDER[type(block)](block, drawn))


def _host(drawn: Contents, kind: str, content: Mapping[str, Any], label: str = "", tag: str = "div") -> str:
    """Return the element in which a script draws ``content``."""
    drawn.append({"kind": kind, **content})
    named = f' aria-label="{escape(label)}"' if label else ""
    return f'<{tag} class="{kind}" data-drawn="{len(drawn) - 1}"{named}></{tag}>'


def _sentences(block: Sentences, _drawn: Contents) -> Iterator[str]:
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


def _drawn(block: Drawn, contents: Contents) -> Iterator[str]:
    yield _host(contents, block.kind, block.content, block.label, block.tag)


def _chart(plot: Plot, drawn: Contents) -> Iterator[str]:
    title = plot.title.split(": ")[0]
    panels = [panel_data(panel) for panel in plot.panels if not isinstance(panel, Space)]
    yield f"<h4>{escape(title)}</h4>"
    yield _host(drawn, "chart", {"panels": panels}, title, "figure")
    yield from (f'<p class="quiet">{escape(note)}</p>' for note in plot.notes)


def _doubts(block: Doubts, drawn: Contents) -> Iterator[str]:
    method = escape(block.bars.title)
    named = f"<strong>Doubtful for {method}:</strong>"
    told = "".join(f'<li class="doubt">{named} {escape(line)}</li>' for line in block.doubts)
    lines = "".join(f"<li>{escape(line)}</li>" for line in block.lines)
    label = f"Importance of the parts, {block.bars.title}"
    bars = _host(drawn, "bars", {"panel": panel_data(block.bars)}, label, "figure")
    yield f'<div class="doubts"><div><h4>{method}</h4>{bars}</div><ul>{lines}{told}</ul></div>'


def _table(table: Table, drawn: Contents) -> Iterator[str]:
    rows = [[round(value, 9) if isinstance(value, float) else value for value in row] for row in table.rows]
    marks = {f"{row},{column}": text for (row, column), text in table.marks.items()}
    content = {
        "columns": [asdict(column) for column in table.columns],
        "rows": rows,
        "filters": [],
        "marks": marks,
        "cells": list(table.cells),
    }
    yield f"<h4>{escape(table.name)}</h4>"
    yield _host(drawn, "table", content, table.name)


def _samples(block: Samples, drawn: Contents) -> Iterator[str]:
    content = {"family": block.family, "items": [asdict(row) for row in block.rows], "chosen": list(block.chosen)}
    yield _host(drawn, "samples", {**content, **short_answers(block.answers)})


def _more(block: More, drawn: Contents) -> Iterator[str]:
    yield f"<details><summary>{escape(block.title)}</summary>\n{_joined(block.blocks, drawn)}\n</details>"


RENDER: dict[type, Callable[[Any, Contents], Iterator[str]]] = {
    Sentences: _sentences,
    Drawn: _drawn,
    Plot: _chart,
    Doubts: _doubts,
    Table: _table,
    Samples: _samples,
    More: _more,
}
