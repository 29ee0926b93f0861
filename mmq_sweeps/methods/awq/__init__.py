"""AWQ (arXiv 2306.00978): protect the columns with large activations by scaling them up before rounding.

Both searches minimise the layer's squared output error over all calibration tokens, a quadratic form in the Gram matrix
``G`` ``[I, I]`` of its inputs: ``sum_o e_o G e_o^T`` for the weight error ``e`` ``[O, I]``. No tokens are rerun.
Linears that share an input share the scale with the least sum of their errors, each relative to its weight's size. With
``fuse`` only scales are searched that the caller can fold into the layer before. Without, the scale is stored beside the
codes (``Q(W s) / s``), so it works for a linear anywhere in a model, but no format that others load holds it. Rows are
processed in chunks: nothing of the weight's size is allocated but its codes.
"""

from mmq_sweeps.methods.awq.clip import best_clipped, quantize_clipped
from mmq_sweeps.methods.awq.errors import output_error
from mmq_sweeps.methods.awq.method import AWQ
from mmq_sweeps.methods.awq.scales import Scale, candidate_scales, search_scale, search_scales

__all__ = [
    "AWQ",
    "Scale",
    "best_clipped",
    "candidate_scales",
    "output_error",
    "quantize_clipped",
    "search_scale",
    "search_scales",
]
