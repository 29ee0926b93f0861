"""Report the installed versions of packages, without importing them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from mmq_sweeps import __version__

BESIDE = ("hydra-core", "torch", "transformers", "wandb")


def told_versions() -> str:
    """Return ``mmq-sweeps 0.1.0 (Python 3.11.9, hydra-core 1.3.8, torch 2.13.0, transformers 5.23.0, wandb 0.31.0)``."""
    beside = ", ".join([f"Python {platform.python_version()}", *(f"{name} {installed(name)}" for name in BESIDE)])
    return f"mmq-sweeps {__version__} ({beside})"


def installed(package: str) -> str:
    """Return the version of a package, or ``absent``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
