"""Find padding tokens from the masks that a block is called with.

Users pass no mask to a vision tower: it derives a mask from that of the pixels or tiles and passes it to its blocks, in
one of several forms. ``[B, T]`` has a value per token, ``[B, H, Q, K]`` or ``[B, Q, K]`` a value per pair of query and
key. A pair is visible if the value is true (booleans), 1 (integers) or 0.0 (added to attention scores).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

OWN = ("attention_mask", "attn_mask", "mask", "patch_attention_mask")
CROSS = ("encoder_attention_mask", "cross_attention_mask", "encoder_mask", "context_mask")
# Marks of arguments whose tokens are not the hidden state's, even if there are as many of them.
OTHERS = ("encoder", "cross", "context", "memory", "image", "vision")
# Mllama's flags (``[B, 1, Q, 1]``), 0 for queries that may see no key. Attention needs a key, so its mask shows all.
SEEING = "full_text_row_masked_out_mask"
# Additive masks below this hide a pair: larger than any bias of positions, and the smallest float16 is -65504.
HIDES = -1e4


def own_mask(named: Mapping[str, Any], hidden: Tensor) -> Tensor | None:
    """Return a mask, true for tokens of ``hidden`` ``[B, T, D]`` that count, from a block's ``named`` arguments.

    A token that may not see itself is padding: that holds for masks that hide padding from all tokens, as most do, and
    for those that hide it from other padding only (Mllama). None if no token is padding.
    """
    if hidden.dim() != 3:
        return None
    for name in OWN:
        mask = named.get(name)
        if isinstance(mask, Tensor) and mask.dim() in (3, 4):
            if mask.shape[-1] == mask.shape[-2]:
                mask = mask.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
            if mask.shape[-2] != 1:
                continue
        counts = _of_keys(mask, len(hidden))
        if counts is not None and counts.shape == hidden.shape[:2]:
            return _with_padding(counts)
    return None


def key_mask(named: Mapping[str, Any], hidden: Tensor) -> Tensor | None:
    """Return a mask of keys ``[B, K]`` that any query sees, if a block attends to more than ``hidden`` ``[B, T, D]``.

    None if all keys count or the block attends to ``hidden`` only.
    """
    if hidden.dim() != 3:
        return None
    for name in OWN:
        mask = named.get(name)
        if isinstance(mask, Tensor) and mask.dim() in (3, 4) and mask.shape[-1] != hidden.shape[1]:
            counts = _of_keys(mask, len(hidden))
            return _with_padding(counts) if counts is not None and len(counts) == len(hidden) else None
    return None


def cross_mask(named: Mapping[str, Any], other: Tensor) -> Tensor | None:
    """Return a mask, true for tokens of ``other`` ``[B, N, D]``, which a block attends to, that any query sees.

    None if all count or no mask fits.
    """
    rows = named.get(SEEING)
    for name in (*CROSS, *OWN):
        mask = named.get(name)
        if isinstance(mask, Tensor) and isinstance(rows, Tensor) and mask.dim() == rows.dim() == 4:
            mask = _visible(mask) & rows.bool()
        counts = _of_keys(mask, len(other))
        # The tiles of an image may be separate rows in ``other`` but follow each other in the mask.
        if counts is not None and counts.numel() == other.shape[:2].numel():
            return _with_padding(counts.reshape(other.shape[:2]))
    return None


def is_another_sequence(name: str, value: Any, hidden: Tensor) -> bool:
    """Return whether a block's argument ``value`` is a sequence ``[B, N, D]`` of other tokens than ``hidden``."""
    if not isinstance(value, Tensor) or value.dim() != 3 or not value.is_floating_point():
        return False
    if any(mark in name for mark in ("mask", "bias", "position", "rotary")):
        return False
    return value.shape[:2] != hidden.shape[:2] or names_others(name)


def names_others(name: str) -> bool:
    """Return whether an argument of this name is never a block's own hidden state."""
    return any(mark in name for mark in OTHERS)


def _of_keys(mask: Any, rows: int) -> Tensor | None:
    """Return booleans ``[B, K]`` for ``rows``, true for keys that any query sees; None if ``mask`` is no mask for them."""
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 3, 4):
        return None
    visible = _visible(mask)
    if visible.dim() == 4:
        visible = visible.any(dim=1)
    if visible.dim() == 3:
        visible = visible.any(dim=1)
    return visible.expand(rows, -1) if len(visible) == 1 else visible


def _visible(mask: Tensor) -> Tensor:
    """Return ``mask`` as booleans, whatever its type says for "visible"; a value per token, not pair, is never added."""
    return mask > HIDES if mask.is_floating_point() and mask.dim() > 2 else mask.bool()


def _with_padding(counts: Tensor) -> Tensor | None:
    return None if bool(torch.all(counts)) else counts.clone()
