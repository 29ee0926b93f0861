"""Make docs/gallery.md: every figure of the analysis, and those of the study with the numbers that each must show.

    python docs/gallery.py [--published mmq]

Runs ``experiment=gallery`` (about 200 cells of the embedded captioner; cells that the store has are not run again) and draws
its figures. ``--published`` is a clone of https://github.com/gautomdas/mmq; without it the study's pictures in docs/images
and numbers in docs/tables stay as they are. Nothing else of the study's data is kept.
"""

from __future__ import annotations

import argparse
import csv
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
PAGE, PICTURES, TABLES = "gallery.md", "images", "tables"
WIDTH, DPI, COLOURS = 6.9, 110, 128
# The study prints these importances of its GPTQ cells, forest, permutation and SHAP averaged (arXiv 2601.15287).
PRINTED = {"vision": 50.4, "connector": 2.0, "language": 47.6}
SOURCES = {"gptq": "GPTQ", "uniform": "uniform"}
OPENING = """# Gallery

Every figure of `python -m analysis figures`, drawn by `python docs/gallery.py`. The first picture of each shows {cells}
cells of `tiny_blip2` on 200 scenes, which say nothing about photographs ([embedded.md](embedded.md)):

    python -m mmq_sweeps -m experiment=gallery && python -m analysis figures --source runs

The others show the cells that the study (arXiv 2601.15287) published; [claims.md](claims.md) says what these can tell:

    python -m analysis figures --source published:mmq --metric cider

The numbers that a picture of the study must show are linked above it. Full precision differs between the study's GPTQ and
uniform files, so compare within a file.
"""
# Budgets of the best cells, in bits per weight.
BUDGETS = (4, 5, 6, 7, 8)
Rows = Iterator[Sequence[str]]


def main() -> None:
    command = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    command.add_argument("--store", type=Path, default=Path("runs"), help="the store of the sweep; default: runs")
    command.add_argument("--published", type=Path, help="a clone of gautomdas/mmq")
    arguments = command.parse_args()
    sweep = ["-m", "mmq_sweeps", "-m", "experiment=gallery", "tracker=none", f"store.dir={arguments.store}"]
    subprocess.run([sys.executable, *sweep], check=True)
    write(str(arguments.store), arguments.published, DOCS)


def write(store: str, published: Path | None, folder: Path, names: Sequence[str] = tuple(FIGURES)) -> None:
    """Write the page, its pictures and tables to ``folder``, from the cells in ``store``."""
    for place in (PICTURES, TABLES):
        (folder / place).mkdir(exist_ok=True)
    if published is not None:
        _draw_study(published, folder)
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
        lines.append(f"## {FIGURES[name][0]}\n\n`--only {name}`\n\n![{name}]({PICTURES}/gallery_{name}.png)\n")
        lines.extend(_shown(name, folder))
    (folder / PAGE).write_text("\n".join(lines))


def _shown(name: str, folder: Path) -> Iterator[str]:
    """Yield the study's pictures of a figure that ``folder`` has, each below a link to its numbers."""
    for source, title in SOURCES.items():
        if (folder / PICTURES / f"study_{name}_{source}.png").exists():
            linked = f"The study, {title} ([numbers]({TABLES}/study_{name}_{source}.csv)):"
            yield f"{linked}\n\n![{name}, {title}]({PICTURES}/study_{name}_{source}.png)\n"


def picture(plot: Plot, path: Path) -> None:
    """Draw ``plot`` as a small PNG."""
    with mpl.rc_context(paper.SETTINGS):
        drawn = io.BytesIO()
        paper.draw(plot, WIDTH).savefig(drawn, dpi=DPI, metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(path, optimize=True)


def _draw_study(published: Path, folder: Path) -> None:
    """Draw the study's cells, and write the numbers that each picture must show."""
    for plot in figures(load([f"published:{published}"]), "cider"):
        name = study_name(plot)
        picture(plot, folder / PICTURES / f"{name}.png")
        with (folder / TABLES / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(numbers(plot))


def study_name(plot: Plot) -> str:
    """Return the name of the picture and of the table of a plot of the study's cells."""
    return f"study_{plot.name.partition('-')[0]}_{'gptq' if 'gptq' in plot.name else 'uniform'}"


def numbers(plot: Plot) -> list[Sequence[str]]:
    """Return the numbers that a picture of the study's files must show, as rows below their heads."""
    return list(NUMBERS[plot.name.partition("-")[0]](plot))


def _importance(plot: Plot) -> Rows:
    (panel,) = plot.panels
    assert isinstance(panel, Bars)
    printed = PRINTED if "gptq" in plot.name else {}
    (bars,) = panel.groups
    yield ["part", "drawn", "95% from", "95% to", *(["printed in the study"] if printed else [])]
    for part, *values in zip(panel.labels, bars.y, bars.low or (), bars.high or (), strict=True):
        yield [part, *(f"{value:.1f}" for value in values), *([str(printed[part])] if printed else [])]


def _interaction(plot: Plot) -> Rows:
    """Yield for each method the mean damage of two parts together, beside the sum of their damages alone."""
    yield ["method", "pairs of parts", "damage together", "sum of each alone"]
    for panel in _xy(plot):
        alone = [value for one in panel.series for value in one.x]
        together = [value for one in panel.series for value in one.y]
        means = (f"{sum(values) / len(values):.4f}" for values in (together, alone))
        yield [panel.title, str(len(alone)), *means]


def _tradeoff(plot: Plot) -> Rows:
    """Yield the best cell within each budget, from the frontier that is drawn."""
    yield ["at most", "best cell", "bits per weight", "CIDEr", "of full precision"]
    for panel in _xy(plot):
        for curve in (one for one in panel.series if one.label):
            points = [*zip(curve.x, curve.y, curve.names, strict=True)]
            for budget in BUDGETS:
                within = [point for point in points if point[0] <= budget]
                if within:
                    bits, score, name = max(within, key=lambda point: point[1])
                    share = f"{score / panel.level:.1%}" if panel.level else ""
                    yield [str(budget), name.split("\n")[0], f"{bits:.3f}", f"{score:.4f}", share]


def _curves(plot: Plot) -> Rows:
    """Yield a row for each curve with its value at every bit-width."""
    curves = [(panel.title, one) for panel in _xy(plot) for one in panel.series]
    widths = sorted({width for _, one in curves for width in one.x})
    yield ["panel", "curve", *(f"{width:g} bits" for width in widths)]
    for title, one in curves:
        values = dict(zip(one.x, one.y, strict=True))
        yield [title, one.label, *(f"{values[width]:.4f}" if width in values else "" for width in widths)]


def _heatmaps(plot: Plot) -> Rows:
    """Yield the three corners of each map in which a part has its fewest bits."""
    yield ["map", "cell", "CIDEr"]
    for panel in _maps(plot):
        for row, column in ((0, 0), (0, -1), (-1, 0)):
            cell = f"{panel.x_label} {panel.columns[column]}, {panel.y_label} {panel.rows[row]}"
            yield [panel.title, cell, f"{panel.values[row][column]:.4f}"]


def _pairs(plot: Plot) -> Rows:
    """Yield a row for each part alone and each two together, with a column for each bit-width."""
    maps = _maps(plot)
    parts = maps[0].columns
    places = [(i, j) for i in range(len(parts)) for j in range(i, len(parts))]
    yield ["parts", *(panel.title.rpartition(", ")[2] for panel in maps)]
    for i, j in sorted(places, key=lambda place: place[0] != place[1]):
        name = parts[i] if i == j else f"{parts[i]} and {parts[j]}"
        values = [panel.values[i][j] for panel in maps]
        yield [name, *("" if math.isnan(value) else f"{value:.4f}" for value in values)]


def _space(plot: Plot) -> Rows:
    """Yield the mean over all cells by the bits of each part."""
    (panel,) = plot.panels
    assert isinstance(panel, Space)
    yield ["mean CIDEr at", *panel.labels]
    for level in sorted({width for point in panel.points for width in point}):
        row = [f"{level:g}"]
        for axis in range(3):
            values = [value for point, value in zip(panel.points, panel.values, strict=True) if point[axis] == level]
            row.append(f"{sum(values) / len(values):.4f}" if values else "")
        yield row


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


def pictures(page: str) -> list[str]:
    """Return the pictures that ``page`` shows."""
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)


if __name__ == "__main__":
    main()
