"""Locate the files shipped with the package, in a checkout or a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """Return the folder of ``config.yaml``: inside an installed package, beside the package in a checkout."""
    for folder in (PACKAGE / "conf", PACKAGE.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"no config.yaml in {PACKAGE / 'conf'} or {PACKAGE.parent / 'conf'}; install the package again"
    )
