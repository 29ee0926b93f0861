"""Imports what commands import late: the embedded model's classes, which transformers reads when first asked, and more."""

from contextlib import suppress

from transformers import AutoProcessor, Blip2ForConditionalGeneration  # noqa: F401

with suppress(ImportError):  # It needs an extra.
    import analysis.verbs  # noqa: F401
