"""Format results as JSON for programs."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(content: Any) -> str:
    """Format ``content`` as JSON; NaN and infinity, which JSON does not know, become ``null``."""
    return json.dumps(_finite(content), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return plain(value)


def plain(value: Any) -> Any:
    """Convert a single ``value`` for JSON: numpy scalars to Python's, NaN and infinity to ``None``."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
