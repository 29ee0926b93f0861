"""Make docs/gallery.md and its pictures: every figure of the analysis, and those of the study beside its published numbers.

    python docs/gallery.py [--published mmq]

Runs ``experiment=gallery`` (about 200 cells of the embedded captioner; cells that the store has are not run again) and draws
its figures. ``--published`` is a clone of https://github.com/gautomdas/mmq; without it that part of the page stays as it is.
Of the study's data only figures of what is computed here from them are kept.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
from PIL import Image

from analysis.figures import paper
from analysis.figures.catalog import FIGURES, figures
from analysis.figures.plots import XY, Bars, Plot
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

    python -m analysis figures --source published:mmq --metric cider --only {names}

The study (arXiv 2601.15287) published its cells; [claims.md](claims.md) says what these can tell. Only pictures of what is
computed from its files are kept here: with other names, the command draws the others.
"""


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


def _study(published: Path, folder: Path) -> Iterator[str]:
    """Yield the part of the page about the study's files: pictures and, below each, the numbers that it must show."""
    names = ("importance", "interaction")
    yield STUDY.format(names=" ".join(names))
    plots = {plot.name: plot for plot in figures(load([f"published:{published}"]), "cider", names)}
    for name, plot in plots.items():
        kind, source = name.partition("-")[0], "GPTQ" if "gptq" in name else "uniform"
        path = f"{PICTURES}/study_{kind}_{source.lower()}.png"
        picture(plot, folder / path)
        yield f"### {FIGURES[kind][0]}, {source}\n\n![{kind} of the study's {source} cells]({path})\n"
        yield from _importance(plot, source) if kind == "importance" else _interaction(plot)


def _importance(plot: Plot, source: str) -> Iterator[str]:
    (panel,) = plot.panels
    assert isinstance(panel, Bars)
    printed = PRINTED if source == "GPTQ" else {}
    yield "| part | drawn | 95% interval |" + (" printed in the study |" if printed else "")
    yield "|---|---:|---:|" + ("---:|" if printed else "")
    (bars,) = panel.groups
    for part, value, low, high in zip(panel.labels, bars.y, bars.low or (), bars.high or (), strict=True):
        told = f"| {part} | {value:.1f} | {low:.1f} .. {high:.1f} |"
        yield told + (f" {printed[part]} |" if printed else "")
    yield ""


def _interaction(plot: Plot) -> Iterator[str]:
    for panel in plot.panels:
        assert isinstance(panel, XY)
        alone = [value for one in panel.series for value in one.x]
        together = [value for one in panel.series for value in one.y]
        yield (
            f"{panel.title}: {len(alone)} pairs of parts; damage together {sum(together) / len(together):.4f} on average, the "
            f"sum of each alone {sum(alone) / len(alone):.4f} ([claims.md](claims.md#damages-add-up)).\n"
        )


def pictures(page: str) -> list[str]:
    """Return the pictures that ``page`` shows."""
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)


if __name__ == "__main__":
    main()
