"""Tables of a store for LaTeX, with rules of the package booktabs; long ones may break over pages (longtable)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from analysis.tables.pivot import Grid, grids

# Lines that a page holds.
PAGE_LINES = 45
# Points: the text's width in the article class, a sign's average, and the space beside each column. A table that may break
# over pages cannot be scaled, so that wide ones have smaller letters.
TEXT, SIGN, BESIDE = 345, 5.0, 12
SIZES = ((r"\normalsize", 1.0), (r"\footnotesize", 0.8), (r"\scriptsize", 0.7), (r"\tiny", 0.5))
MINUS = "\u2212"
SIGNS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "…": r"\ldots{}", "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}", MINUS: "$-$", "≤": r"$\le$", "≥": r"$\ge$", "≠": r"$\ne$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip
# The letters that T1 holds, without those of Latin Extended-A that it lacks; any other sign stops LaTeX.
LACKING = "ĦħĸĿŀŉŦŧſ"
KNOWN = {chr(code) for code in (*range(0x20, 0x7F), *range(0xA0, 0x180))} - set(LACKING) | set(
    "\u2013\u2014\u2018\u2019\u201c\u201d\u201a\u201e€™•"
)
# Two of these in a row become one other sign.
PAIRS = re.compile(r"-(?=-)|,(?=,)")
NEGATIVE = re.compile(r"(?:(?<=^)|(?<=, ))-(?=\d)")
HEAD = "% \\usepackage{booktabs,longtable,graphicx} \\usepackage[T1]{fontenc}"
# Scaled down to the text's width, never up.
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def latex(table_rows: Sequence[dict[str, Any]]) -> str:
    """Return the tables of ``grids`` as LaTeX, each with its caption and, below it, its notes."""
    return "\n\n".join([HEAD, *map(_table, grids(table_rows))])


def escaped(text: str) -> str:
    """Escape ``text`` so that LaTeX prints it as it is; brackets are held, since a row may begin with one.

    Line breaks become spaces, and a sign that the fonts lack its number: ``[U+4E2D]``.
    """
    shown = "".join(map(_sign, PAIRS.sub(r"\g<0>\0", " ".join(text.split()))))
    return f"{{{shown}}}" if shown.startswith(("[", "*")) else shown


def _sign(sign: str) -> str:
    if sign == "\0":
        return "{}"
    if sign in SIGNS:
        return SIGNS[sign]
    return sign if sign in KNOWN else f"[U+{ord(sign):04X}]"


def _table(grid: Grid) -> str:
    columns = "l" * grid.texts + "r" * (len(grid.heads) - grid.texts)
    head, body = [*_rows([grid.heads], grid.texts)], [*_rows(grid.lines, grid.texts)]
    caption = f"\\caption{{{escaped(grid.caption)}}}"
    notes = [f"\\par\\smallskip{{\\footnotesize\\raggedright {escaped(text)}\\par}}" for text in grid.notes]
    if len(body) > PAGE_LINES:
        size = f"{{{_size(grid)}\\setlength{{\\tabcolsep}}{{0.5em}}"
        top = [size, f"\\begin{{longtable}}{{{columns}}}", caption + r" \\", r"\toprule", *head, r"\midrule"]
        again = [r"\endfirsthead", r"\toprule", *head, r"\midrule", r"\endhead"]
        return "\n".join([*top, *again, *body, r"\bottomrule", r"\end{longtable}}", *notes])
    top = [
        r"\begin{table}",
        r"\centering",
        caption + r"\par\smallskip",
        FITTED,
        f"\\begin{{tabular}}{{{columns}}}",
        r"\toprule",
    ]
    return "\n".join([*top, *head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}}", *notes, r"\end{table}"])


def _size(grid: Grid) -> str:
    """Return the largest size of letters at which the table is about as wide as the text, or the smallest."""
    widths = [max(map(len, column)) for column in zip(grid.heads, *grid.lines, strict=True)]
    whole = sum(width * SIGN + BESIDE for width in widths)
    return next((name for name, share in SIZES if whole * share <= TEXT), SIZES[-1][0])


def _rows(lines: Sequence[Sequence[str]], texts: int) -> list[str]:
    """Return the rows, with a minus in place of a hyphen before numbers."""
    shown = [
        [escaped(cell if place < texts else NEGATIVE.sub(MINUS, cell)) for place, cell in enumerate(line)]
        for line in lines
    ]
    return [" & ".join(line) + r" \\" for line in shown]
