"""Command-line overrides of keys below a part's bits and method, in the form in which Hydra can apply them.

``component.language.bits.mlp=3`` would replace the number that ``component.language.bits`` is, and with it every width but
this one. So it is kept apart, as ``++component.language.bits_at.mlp=3``, and applied on top; likewise for methods.

Hydra composes a sweep once without swept values, so ``method=gptq,awq method.vision_weight=0.5`` would look for the field in
the default method. A field of a swept group is therefore swept as well, over its one value.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

APART = {"bits": "bits_at", "method": "method_fields"}
WRITTEN = re.compile(r"^(?:\+\+|\+)?component\.(\w+)\.(bits|method)\.(?=[\w.]+=)")
# Groups whose options have unlike fields, and a field's single value that Hydra's choice() takes as it is.
SWEPT = re.compile(r"^(model|method|task|tracker)=.*,")
FIELD = re.compile(r"^(model|method|task|tracker)(\.[\w.]+)=(?!null$)([\w.+-]+)$")
ONE_CHOICE = re.compile(r"^((?:model|method|task|tracker)\.[\w.]+)=choice\(([\w.+-]+)\)$")
KEPT = re.compile(r"^\+\+component\.(\w+)\.(bits_at|method_fields)\.")


def kept_apart(overrides: Iterable[str]) -> list[str]:
    """Return ``overrides`` with keys below a part's bits and method kept apart."""
    return [WRITTEN.sub(lambda found: f"++component.{found[1]}.{APART[found[2]]}.", line) for line in overrides]


def swept_with_group(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a sweep with fields of swept groups as sweeps of one value, that of the last of each key."""
    groups = {found[1] for line in overrides if (found := SWEPT.match(line))}
    fields = {line.partition("=")[0]: place for place, line in enumerate(overrides) if _is_field(line, groups)}
    # Two sweeps of a key are an error, and only its last value counts.
    kept = [line for place, line in enumerate(overrides) if place >= fields.get(line.partition("=")[0], 0)]
    return [FIELD.sub(r"\1\2=choice(\3)", line) if _is_field(line, groups) else line for line in kept]


def _is_field(override: str, groups: Collection[str]) -> bool:
    found = FIELD.match(override)
    return found is not None and found[1] in groups


def as_written(overrides: Iterable[str]) -> list[str]:
    """Return the overrides that ``kept_apart`` and ``swept_with_group`` changed as they were written."""
    names = {apart: name for name, apart in APART.items()}
    written = (KEPT.sub(lambda found: f"component.{found[1]}.{names[found[2]]}.", line) for line in overrides)
    return [ONE_CHOICE.sub(r"\1=\2", line) for line in written]
