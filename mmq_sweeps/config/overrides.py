"""Command-line overrides of keys below a part's bits and method, in the form in which Hydra can apply them.

``component.language.bits.mlp=3`` would replace the number that ``component.language.bits`` is, and with it every width but
this one. So it is kept apart, as ``++component.language.bits_at.mlp=3``, and applied on top; likewise for methods.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

APART = {"bits": "bits_at", "method": "method_fields"}
WRITTEN = re.compile(r"^(?:\+\+|\+)?component\.(\w+)\.(bits|method)\.(?=[\w.]+=)")
KEPT = re.compile(r"^\+\+component\.(\w+)\.(bits_at|method_fields)\.")


def kept_apart(overrides: Iterable[str]) -> list[str]:
    """Return ``overrides`` with keys below a part's bits and method kept apart."""
    return [WRITTEN.sub(lambda found: f"++component.{found[1]}.{APART[found[2]]}.", line) for line in overrides]


def as_written(overrides: Iterable[str]) -> list[str]:
    """Return the overrides that ``kept_apart`` changed as they were written."""
    names = {apart: name for name, apart in APART.items()}
    return [KEPT.sub(lambda found: f"component.{found[1]}.{names[found[2]]}.", line) for line in overrides]
