"""Formats of quantized weights: grids, codebooks, codes, packing and exact sizes.

A weight ``W`` ``[O, I]`` (output x input features) is stored as integer codes ``q`` with a scale and a zero per group:
``W ~ scale * (q - zero)``. A group is a run of ``group_size`` input columns in a row, a whole row (``channel``) or the
whole matrix (``tensor``). AWQ (arXiv 2306.00978) stores ``W * s`` with an input scale ``s`` per column, so that ``W ~
scale * (q - zero) / s``. A format with a codebook has values in place of even steps: ``W ~ scale * values[q]``, the same
for a row or for all weights (``codebooks.py``).
"""

from __future__ import annotations

from mmq_sweeps.methods.formats.format import DTYPES, MAX_BITS, NORMAL_FLOAT, ROWS, Format, check_group_size
from mmq_sweeps.methods.formats.grid import Grid, check_finite, codebook_grid, fit_grid, grid_over, round_to_grid
from mmq_sweeps.methods.formats.packing import pack_codes, packed_size, unpack_codes
from mmq_sweeps.methods.formats.scales import storable_scale
from mmq_sweeps.methods.formats.weight import QuantizedWeight, divided_rows, round_nearest

__all__ = [
    "DTYPES",
    "MAX_BITS",
    "NORMAL_FLOAT",
    "ROWS",
    "Format",
    "Grid",
    "QuantizedWeight",
    "check_finite",
    "check_group_size",
    "codebook_grid",
    "divided_rows",
    "fit_grid",
    "grid_over",
    "pack_codes",
    "packed_size",
    "round_nearest",
    "round_to_grid",
    "storable_scale",
    "unpack_codes",
]
