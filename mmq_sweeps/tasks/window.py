"""The number of tokens that a model can read."""

from __future__ import annotations

from torch import nn


def model_window(model: nn.Module) -> int | None:
    """Return how many tokens, image tokens included, ``model`` can read; None if its positions have no end."""
    config = getattr(model, "config", None)
    of_text = getattr(config, "get_text_config", lambda: config)
    window = getattr(of_text(), "max_position_embeddings", None)
    return window if isinstance(window, int) and window > 0 else None
