"""Prefixes and names of the columns of the table of cells; ``analysis.cells`` explains each."""

from __future__ import annotations

BITS, METRIC, WARNINGS, DEFINITION = "bits.", "metric.", "warnings.", "definition."
SELECTION, LOADS_IN, BESIDE = "selection.", "loads_in", "beside"
ANSWERS = "answers."
MAIN = "main"
WHOLE = {"blocks": "front+middle+end", "layers": "attention+mlp"}
# Cells that agree in these columns and in ``setting``, which some sources lack, are comparable.
FAMILY = ("source", "model", "task")
VARIANT = "variant"
