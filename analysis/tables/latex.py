"""Tables of a store for LaTeX, with rules of the package booktabs; long ones may break over pages (longtable)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.tables.pivot import Grid, grids

# Lines that a page holds.
PAGE_LINES = 45
SIGNS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "…": r"\ldots{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip
HEAD = "% \\usepackage{booktabs,longtable} \\usepackage[T1]{fontenc}"


def latex(table_rows: Sequence[dict[str, Any]]) -> str:
    """Return the tables of ``grids`` as LaTeX, each with its caption and, below it, its notes."""
    return "\n\n".join([HEAD, *map(_table, grids(table_rows))])


def escaped(text: str) -> str:
    """Escape ``text`` so that LaTeX prints it as it is; brackets are held, since a row may begin with one."""
    shown = "".join(SIGNS.get(sign, sign) for sign in text)
    return f"{{{shown}}}" if shown.startswith(("[", "*")) else shown


def _table(grid: Grid) -> str:
    columns = "l" * grid.texts + "r" * (len(grid.heads) - grid.texts)
    head, body = [*_rows([grid.heads])], [*_rows(grid.lines)]
    caption = f"\\caption{{{escaped(grid.caption)}}}"
    notes = [f"{{\\footnotesize {escaped(text)}\\par}}" for text in grid.notes]
    if len(body) > PAGE_LINES:
        top = [f"\\begin{{longtable}}{{{columns}}}", caption + r" \\", r"\toprule", *head, r"\midrule", r"\endhead"]
        return "\n".join([*top, *body, r"\bottomrule", r"\end{longtable}", *notes])
    top = [
        r"\begin{table}",
        r"\centering",
        caption,
        f"\\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *head,
        r"\midrule",
    ]
    return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}"])


def _rows(lines: Sequence[Sequence[str]]) -> list[str]:
    return [" & ".join(map(escaped, texts)) + r" \\" for texts in lines]
