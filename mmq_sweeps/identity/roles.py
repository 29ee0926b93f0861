"""Roles of configuration fields in a cell's identity, declared with the field.

    batch_size: int = field(metadata=LABEL)

A field without a role counts for everything: a new value is a new cell with its own statistics and quantized layers. So
forgetting a role costs a measurement but never gives a wrong result.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_ROLE = "mmq_sweeps.identity"

# Changes no result: names, places, speed. Part of no id and no key. The path of a file is a label, too, because ids
# contain the digest of its content.
LABEL: Final[Mapping[str, str]] = MappingProxyType({_ROLE: "label"})
# Changes the evaluation but not the calibration data: part of the id, not of the keys of quantized layers.
EVALUATION: Final[Mapping[str, str]] = MappingProxyType({_ROLE: "evaluation"})
# Null is the same as a class without the field; any other value counts for everything.
UNLESS_NULL: Final[Mapping[str, str]] = MappingProxyType({_ROLE: "unless null"})
ROLES: Final = {"LABEL": LABEL, "EVALUATION": EVALUATION, "UNLESS_NULL": UNLESS_NULL}


def role(metadata: Mapping[str, object]) -> Mapping[str, str] | None:
    """Return the role of ``ROLES`` in a field's ``metadata``; None if the field counts for everything."""
    return next((known for known in ROLES.values() if metadata.get(_ROLE) == known[_ROLE]), None)
