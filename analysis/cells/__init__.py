"""The table of cells that all analyses use: a row per cell, the same columns for every source.

| column | meaning |
|---|---|
| ``id``, ``source`` | the cell and its source |
| ``model``, ``task``, ``method`` | names; ``method`` is ``none`` at full precision, ``quantized elsewhere`` for a |
|  | checkpoint that was quantized before |
| ``bits.PART`` | bits of the part's quantized linears: 16 if none is quantized, missing if the model has no such part; |
|  | their mean, weighted by their weights, if they have several |
| ``selection.PART`` | as JSON what bits, block groups and layer kinds do not describe: several bit-widths or methods in a |
|  | part, or units by number; missing otherwise |
| ``blocks.PART``, ``layers.PART`` | the part's quantized block groups and layer kinds, joined by ``+``; empty if none, in |
|  | a part of a single tensor, and if ``selection.PART`` has them |
| ``group.PART`` | the part's own group size; empty if it uses the method's |
| ``weights.PART`` | number of quantized weights in the part |
| ``bpw_paper``, ``bpw_exact`` | bits per weight; exact only if known |
| ``loads_in`` | the loaders that take its export quantized, as ``transformers+vllm``, or ``dequantized``; missing if unknown |
| ``metric.NAME``, ``low.NAME``, ``high.NAME`` | the metric and its 95% interval over items, if there is one |
| ``definition.NAME`` | the published script that the metric equals, if several share its name |
| ``count.NAME``, ``warnings.NAME`` | the metric's number of items, and warnings about it, a line each |
| ``higher.NAME`` | true if higher is better; missing means true |
| ``answers.empty``, ``answers.identical`` | share of items without an answer, and with the ``answers.commonest`` one, which |
|  | would be ``answers.expected`` if all were right; missing in records that do not tell |
| ``main`` | the first metric that the cell was asked for; missing means the first of the source's columns |
| ``created``, ``where`` | time of measurement, and the file or URL of the record |
| ``setting`` | hash of the full model and task configuration; cells that differ in it are not compared |
| ``beside`` | hash of the same without the checkpoint: what is quantized elsewhere is compared with its full precision |
| ``settings`` | that configuration as JSON, by command-line names |
| ``overrides`` | the command line that measures the cell, without the bits of its parts |
| ``assigned`` | the rest of that command line: the bits of its parts, or a file for units by number |
| ``missing`` | number of items left out of the measurement |
| ``provenance`` | the record's notes on images, processor and libraries beside the configuration, as JSON |
| ``variant`` | the method's fields and its calibration, as JSON; if they differ within a method, ``method`` says how |
| ``url`` | the page of its W&B run, if known |

Other columns of a source stay under their own names.
"""

from __future__ import annotations

from analysis.cells.items import Items
from analysis.cells.table import Cells, History

__all__ = ["Cells", "History", "Items"]
