"""Read ``configs/N.json`` of the study's repository: the quantization that row N of its uniform table was configured for.

A file lists selections ``{"model_part": VIT|QFORMER|LLM, "layer_group": FIRST|MIDDLE|LAST|ALL, "layer_type":
MLP|ATTENTION|BOTH, "num_bits"}``. It says more than the table, which has a single bit-width per row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmq_sweeps.identity.assignment import BLOCK_GROUPS, FULL_PRECISION_BITS, LAYER_KINDS
from mmq_sweeps.reporting.counts import out_of

PARTS = {"VIT": "vision", "QFORMER": "connector", "LLM": "language"}
PLACES = {"FIRST": ("front",), "MIDDLE": ("middle",), "LAST": ("end",), "ALL": BLOCK_GROUPS}
LAYERS = {"MLP": ("mlp",), "ATTENTION": ("attention",), "BOTH": LAYER_KINDS}
# Quantized part -> (bits, block groups, layer kinds).
Selected = dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]]


def selected(path: Path) -> Selected | None:
    """Return the parts that the configuration at ``path`` quantizes.

    ``None`` if a part has several bit-widths, or if its choices are not block groups x layer kinds. Raises ValueError if
    the file is truncated or is not a configuration of the study.
    """
    chosen: dict[str, dict[tuple[str, str], int]] = {}
    try:
        for entry in json.loads(path.read_text()):
            places, kinds = PLACES[entry["layer_group"]], LAYERS[entry["layer_type"]]
            of_part = chosen.setdefault(PARTS[entry["model_part"]], {})
            of_part |= {(group, kind): int(entry["num_bits"]) for group in places for kind in kinds}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: is no configuration of the study ({type(error).__name__}: {error}); fetch it again"
        ) from error
    found: Selected = {}
    for part, widths in chosen.items():
        low = {place: bits for place, bits in widths.items() if bits < FULL_PRECISION_BITS}
        groups = tuple(group for group in BLOCK_GROUPS if any(place[0] == group for place in low))
        kinds = tuple(kind for kind in LAYER_KINDS if any(place[1] == kind for place in low))
        if len(set(low.values())) > 1 or len(low) != len(groups) * len(kinds):
            return None
        if low:
            found[part] = (next(iter(low.values())), groups, kinds)
    return found


def differences(stated: Mapping[int, Selected], configured: Mapping[int, Selected | None]) -> list[str]:
    """Describe the rows whose table disagrees with their configuration, in at most a single sentence."""
    unlike = [number for number in sorted(stated) if number in configured and configured[number] != stated[number]]
    if not unlike:
        return []
    first = unlike[0]
    meant = configured[first]
    state = ("states something else than its", "state something else than their")
    return [
        f"{out_of(len(unlike), len(stated), 'row', *state)} configuration; what is configured is shown. "
        f"The first is config {first}: row {_told(stated[first])}, configuration "
        + ("with several bit-widths in a part, shown as the row has it" if meant is None else _told(meant))
    ]


def lacking(stated: Mapping[int, Any], configured: Mapping[int, Any]) -> list[str]:
    """Describe the configurations without a row of results, in at most a single sentence."""
    missing = sorted(configured.keys() - stated.keys())
    if not missing:
        return []
    shown = ", ".join(str(number) for number in missing[:5]) + (" and so on" if len(missing) > 5 else "")
    return [f"{len(missing)} of {len(configured)} configurations have no row of results: {shown}"]


def _told(chosen: Selected) -> str:
    parts = [f"{part} {bits} ({'+'.join(groups)} {'+'.join(kinds)})" for part, (bits, groups, kinds) in chosen.items()]
    return ", ".join(parts) or "full precision"
