"""Statistics of an input and of the linears that it feeds, of all its tokens and of vision and text tokens apart.

With a ``vision_weight`` ``w`` a method solves for ``w * G_vision + (1 - w) * G_text``, each the mean over its own tokens,
instead of the mean over all tokens, in which the many tokens of an image outweigh those of the text. A weight of 0.5 is that
of VLM-PTQ (CVPR 2026); MBQ (arXiv 2412.19509) weighs the two kinds by their gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.quantization.folding import Fold


@dataclass(frozen=True)
class TokenKinds:
    """Statistics of an input's vision tokens and of its text tokens, each of these alone."""

    vision: LayerStats
    text: LayerStats


@dataclass(frozen=True)
class SharedStats:
    """Statistics of an input, the full names of the linears that it feeds, and its number of tokens that are not finite.

    ``fold`` says where a scale of the input can go; None if there is no such place, and behind quantized units. ``kinds`` is
    None if they were not asked for or the input has tokens of one kind only. ``alike`` holds the statistics of all tokens
    alike where ``stats`` are weighted.
    """

    linears: tuple[str, ...]
    stats: LayerStats
    not_finite: int = 0
    fold: Fold | None = None
    kinds: TokenKinds | None = None
    alike: LayerStats | None = None

    @property
    def of_all_tokens(self) -> LayerStats:
        """The statistics of all tokens alike."""
        return self.alike or self.stats

    def weighted(self, weight: float | None) -> SharedStats:
        """Return these statistics with vision tokens weighted by ``weight`` and text tokens by ``1 - weight``.

        With None, or if the input has tokens of one kind only, they are those of all tokens alike: a weight between two kinds
        decides nothing if there is one.
        """
        if weight is None or self.kinds is None:
            return self
        vision, text = self.kinds.vision, self.kinds.text
        # At 0 and 1 exactly the statistics of one kind.
        mixed = LayerStats(
            text.gram.lerp(vision.gram, weight), text.mean_abs.lerp(vision.mean_abs, weight), self.stats.count
        )
        return replace(self, stats=mixed, kinds=None, alike=self.stats)
