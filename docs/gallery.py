"""Make docs/gallery.md and its pictures: every figure of the analysis, and those of the study beside its published numbers.

    python docs/gallery.py [--published mmq]

Runs ``experiment=gallery`` (about 200 cells of the embedded captioner; cells that the store has are not run again) and draws
its figures. ``--published`` is a clone of https://github.com/gautomdas/mmq; without it that part of the page stays as it is.
Of the study's data only pictures, and some numbers beside them, are kept.
"""

from __future__ import annotations

import argparse
import io
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
from PIL import Image

from analysis.figures import paper
from analysis.figures.catalog import FIGURES, figures
from analysis.figures.plots import XY, Bars, Heatmap, Plot, Space
from analysis.load import load

DOCS = Path(__file__).resolve().parent
PAGE, PICTURES = "gallery.md", "images"
WIDTH, DPI, COLOURS = 6.9, 110, 128
# The study prints these importances of its GPTQ cells, forest, permutation and SHAP averaged (arXiv 2601.15287).
PRINTED = {"vision": 50.4, "connector": 2.0, "language": 47.6}
MARK = "<!-- published -->"
OPENING = """# Gallery

Every figure of `python -m analysis figures`, drawn by `python docs/gallery.py`.

## The embedded captioner

    python -m mmq_sweeps -m experiment=gallery && python -m analysis figures --source runs

{cells} cells of `tiny_blip2` on 200 scenes, which say nothing about photographs ([embedded.md](embedded.md)).
"""
STUDY = """
## The study's files

    python -m analysis figures --source published:mmq --metric cider

The study (arXiv 2601.15287) published its cells; [claims.md](claims.md) says what these can tell. Below each picture are the
numbers that it must show. Compare within a file: their full precision differs.
"""
# Budgets of the best cells, in bits per weight.
BUDGETS = (4, 5, 6, 7, 8)
Lines = Iterator[str]


def main() -> None:
    command = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    command.add_argument("--store", type=Path, default=Path("runs"), help="the store of the sweep; default: runs")
    command.add_argument("--published", type=Path, help="a clone of gautomdas/mmq")
    arguments = command.parse_args()
    sweep = ["-m", "mmq_sweeps", "-m", "experiment=gallery", "tracker=none", f"store.dir={arguments.store}"]
    subprocess.run([sys.executable, *sweep], check=True)
    write(str(arguments.store), arguments.published, DOCS)


def write(store: str, published: Path | None, folder: Path, names: Sequence[str] = tuple(FIGURES)) -> None:
    """Write the page and its pictures to ``folder``, from the cells in ``store``."""
    (folder / PICTURES).mkdir(exist_ok=True)
    cells = load([store])
    lines = [OPENING.format(cells=int((cells.frame["status"] == "done").sum()))]
    drawn: set[str] = set()
    for plot in figures(cells, names=names):
        name = plot.name.partition("-")[0]
        # Captions come first, and have every figure but one.
        if name in drawn:
            continue
        drawn.add(name)
        picture(plot, folder / PICTURES / f"gallery_{name}.png")
        lines.append(f"### {FIGURES[name][0]}\n\n`--only {name}`\n\n![{name}]({PICTURES}/gallery_{name}.png)\n")
    page = folder / PAGE
    kept = page.read_text().partition(MARK)[2] if page.exists() else ""
    told = "\n".join(_study(published, folder)) if published is not None else kept
    page.write_text("\n".join(lines) + f"\n{MARK}" + told.rstrip() + "\n")


def picture(plot: Plot, path: Path) -> None:
    """Draw ``plot`` as a small PNG."""
    with mpl.rc_context(paper.SETTINGS):
        drawn = io.BytesIO()
        paper.draw(plot, WIDTH).savefig(drawn, dpi=DPI, metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(path, optimize=True)


def _study(published: Path, folder: Path) -> Lines:
    """Yield the part of the page about the study's files: pictures and, below each, the numbers that it must show."""
    yield STUDY
    for plot in figures(load([f"published:{published}"]), "cider"):
        kind, source = plot.name.partition("-")[0], "GPTQ" if "gptq" in plot.name else "uniform"
        path = f"{PICTURES}/study_{kind}_{source.lower()}.png"
        picture(plot, folder / path)
        yield f"### {FIGURES[kind][0]}, {source}\n\n![{kind} of the study's {source} cells]({path})\n"
        yield from numbers(plot)


def numbers(plot: Plot) -> Lines:
    """Yield the numbers that a picture of the study's files must show, as Markdown."""
    yield from NUMBERS[plot.name.partition("-")[0]](plot)
    yield ""


def _importance(plot: Plot) -> Lines:
    (panel,) = plot.panels
    assert isinstance(panel, Bars)
    printed = PRINTED if "gptq" in plot.name else {}
    (bars,) = panel.groups
    rows = [
        [part, f"{value:.1f}", f"{low:.1f} .. {high:.1f}", *([str(printed[part])] if printed else [])]
        for part, value, low, high in zip(panel.labels, bars.y, bars.low or (), bars.high or (), strict=True)
    ]
    yield from _table(["part", "drawn", "95% interval", *(["printed in the study"] if printed else [])], rows)


def _interaction(plot: Plot) -> Lines:
    for panel in _xy(plot):
        alone = [value for one in panel.series for value in one.x]
        together = [value for one in panel.series for value in one.y]
        yield (
            f"{panel.title}: {len(alone)} pairs of parts; damage together {sum(together) / len(together):.4f} on average, the "
            f"sum of each alone {sum(alone) / len(alone):.4f} ([claims.md](claims.md#damages-add-up))."
        )


def _tradeoff(plot: Plot) -> Lines:
    """Yield the best cell within each budget, from the frontier that is drawn."""
    rows = []
    for panel in _xy(plot):
        for curve in (one for one in panel.series if one.label):
            points = [*zip(curve.x, curve.y, curve.names, strict=True)]
            for budget in BUDGETS:
                within = [point for point in points if point[0] <= budget]
                if within:
                    bits, score, name = max(within, key=lambda point: point[1])
                    share = f"{score / panel.level:.1%}" if panel.level else ""
                    rows.append([str(budget), name.split("\n")[0], f"{bits:.3f}", f"{score:.4f}", share])
    yield from _table(["at most", "best cell", "bits per weight", "CIDEr", "of full precision"], rows)


def _curves(plot: Plot) -> Lines:
    """Yield a row for each curve with its value at every bit-width."""
    curves = [(panel.title, one) for panel in _xy(plot) for one in panel.series]
    widths = sorted({width for _, one in curves for width in one.x})
    rows = []
    for title, one in curves:
        values = dict(zip(one.x, one.y, strict=True))
        rows.append([title, one.label, *(f"{values[width]:.4f}" if width in values else "" for width in widths)])
    yield from _table(["", "", *(f"{width:g} bits" for width in widths)], rows)


def _heatmaps(plot: Plot) -> Lines:
    """Yield the three corners of each map in which a part has its fewest bits."""
    rows = []
    for panel in _maps(plot):
        for row, column in ((0, 0), (0, -1), (-1, 0)):
            cell = f"{panel.x_label} {panel.columns[column]}, {panel.y_label} {panel.rows[row]}"
            rows.append([panel.title, cell, f"{panel.values[row][column]:.4f}"])
    yield from _table(["", "cell", "CIDEr"], rows)


def _pairs(plot: Plot) -> Lines:
    """Yield a row for each part alone and each two together, with a column for each bit-width."""
    maps = _maps(plot)
    parts = maps[0].columns
    places = [(i, j) for i in range(len(parts)) for j in range(i, len(parts))]
    rows = []
    for i, j in sorted(places, key=lambda place: place[0] != place[1]):
        name = parts[i] if i == j else f"{parts[i]} and {parts[j]}"
        values = [panel.values[i][j] for panel in maps]
        rows.append([name, *("" if math.isnan(value) else f"{value:.4f}" for value in values)])
    yield from _table(["", *(panel.title.rpartition(", ")[2] for panel in maps)], rows)


def _space(plot: Plot) -> Lines:
    """Yield the mean over all cells by the bits of each part."""
    (panel,) = plot.panels
    assert isinstance(panel, Space)
    levels = sorted({width for point in panel.points for width in point})
    rows = []
    for level in levels:
        row = [f"{level:g}"]
        for axis in range(3):
            values = [value for point, value in zip(panel.points, panel.values, strict=True) if point[axis] == level]
            row.append(f"{sum(values) / len(values):.4f}" if values else "")
        rows.append(row)
    yield from _table(["mean CIDEr at", *panel.labels], rows)


NUMBERS = {
    "tradeoff": _tradeoff,
    "parts": _curves,
    "groups": _curves,
    "layers": _curves,
    "heatmaps": _heatmaps,
    "pairs": _pairs,
    "importance": _importance,
    "space": _space,
    "interaction": _interaction,
}


def _xy(plot: Plot) -> list[XY]:
    return [panel for panel in plot.panels if isinstance(panel, XY)]


def _maps(plot: Plot) -> list[Heatmap]:
    return [panel for panel in plot.panels if isinstance(panel, Heatmap)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    yield f"| {' | '.join(head)} |"
    texts = [not any(row[place][:1].isdigit() for row in rows) for place in range(len(head))]
    yield f"|{'|'.join('---' if text else '---:' for text in texts)}|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def pictures(page: str) -> list[str]:
    """Return the pictures that ``page`` shows."""
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)


if __name__ == "__main__":
    main()
