"""What a field is to the identity of a cell, said where the field is declared.

    batch_size: int = field(metadata=LABEL)

Without a role a field counts: another value is another cell with statistics and quantized layers of its own. A field that
nobody thought about therefore costs a measurement, and never gives a wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_ROLE = "mmq_sweeps.identity"

# Names, places or speeds up without changing a result: part of no id and no key. The place of a file is a label as well;
# ids hold the file's content.
LABEL: Final[Mapping[str, str]] = MappingProxyType({_ROLE: "label"})
# Changes what is measured but not what calibration sees: part of the id, and not of the keys of quantized layers.
EVALUATION: Final[Mapping[str, str]] = MappingProxyType({_ROLE: "evaluation"})
ROLES: Final = {"LABEL": LABEL, "EVALUATION": EVALUATION}


def role(metadata: Mapping[str, object]) -> Mapping[str, str] | None:
    """``LABEL``, ``EVALUATION``, or ``None`` if a field with this ``metadata`` counts for everything."""
    return next((known for known in ROLES.values() if metadata.get(_ROLE) == known[_ROLE]), None)
