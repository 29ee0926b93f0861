"""Draw the README's picture of the report: ``python docs/images/report.py [--store FOLDER]``.

It runs the embedded grid (three methods at four widths of every part, some minutes), writes its report, and photographs
the first screen in Chromium. A store that has the grid already is used as it is.
"""

from __future__ import annotations

import argparse
import base64
import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
WIDTHS = "2,3,4,8"
GRID = ["method=gptq,awq,rtn", *(f"component.{part}.bits={WIDTHS}" for part in ("vision", "connector", "language"))]
SIZE = (1280, 800)
LARGEST = 200_000


def photograph(page: Path, out: Path, folder: Path) -> None:
    """Write the first screen of ``page`` as a PNG of few colours."""
    from tests.analysis.browser import chromium, show

    with chromium(folder / "profile") as driver:
        show(driver, page, SIZE[0])
        clip = {"x": 0, "y": 0, "width": SIZE[0], "height": SIZE[1], "scale": 1}
        shot = driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "clip": clip, "captureBeyondViewport": True}
        )
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    if out.stat().st_size >= LARGEST:
        raise SystemExit(f"{out}: has {out.stat().st_size:,} bytes, more than {LARGEST:,}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--store", type=Path, help="default: a folder that is removed afterwards")
    options.add_argument("--out", type=Path, default=HERE / "report.png")
    asked = options.parse_args()
    sys.path.insert(0, str(CHECKOUT))
    with tempfile.TemporaryDirectory() as name:
        folder, python = Path(name), [sys.executable, "-m"]
        store = asked.store or folder / "runs"
        sweep = [
            "mmq_sweeps",
            "-m",
            "tracker=none",
            f"store.dir={store.resolve()}",
            f"hydra.sweep.dir={folder / 'hydra'}",
        ]
        subprocess.run([*python, *sweep, *GRID], check=True, cwd=CHECKOUT)
        page = folder / "report.html"
        report = ["analysis", "report", "--source", str(store.resolve()), "--out", str(page)]
        subprocess.run([*python, *report], check=True, cwd=CHECKOUT)
        photograph(page, asked.out, folder)


if __name__ == "__main__":
    main()
