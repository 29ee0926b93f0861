"""Find the installed lmms-eval without importing it: its folder, its version, and the commands that install it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from functools import lru_cache
from pathlib import Path

logger = logging.getLogger(__name__)

PACKAGE, DISTRIBUTION = "lmms_eval", "lmms-eval"
# The release whose results the tests compare with.
TESTED = "0.7.3"
INSTALL = f"pip install 'mmq-sweeps[lmms-eval]' && pip install --no-deps {DISTRIBUTION}=={TESTED}"


def root() -> Path:
    """Return the folder of the installed package; a ValueError with the install commands if there is none."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        # Its own requirements are sixty packages that few tasks import, and pin a wandb that is older than constraints.txt.
        raise ValueError(f"{DISTRIBUTION} is not installed; install it with: {INSTALL}")
    return Path(spec.origin).parent


def version() -> str:
    """Return the installed version; ``unknown`` for a checkout without metadata."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@lru_cache(maxsize=1)
def warn_if_untested() -> None:
    """Warn once if another version is installed than the tests compare with."""
    if (found := version()) != TESTED:
        logger.warning(
            "%s %s is installed; that results equal its own is tested with %s only", DISTRIBUTION, found, TESTED
        )
