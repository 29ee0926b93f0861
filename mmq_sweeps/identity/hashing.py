"""The hash behind every id and key."""

from __future__ import annotations

import hashlib
import json


def digest(value: object) -> str:
    """Return the hexadecimal SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
