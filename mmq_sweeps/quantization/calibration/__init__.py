"""Layer statistics, block by block.

A full-precision run over the calibration batches captures the calls of every part's blocks. A part is then rerun block
by block from the input of its first block, and only the current block's statistics are in memory. Linears with the same
input tensor (query, key and value) share their statistics.

Blocks are called as the model called them, whatever their arguments are named. If the model does something between two
blocks (a convolution between the stages of a vision tower, the step from an encoder to its decoder, image features
added behind some layers), the later block's input is captured as well.

The head is a part whose one block is the linear itself. It is never run alone: its statistics are those of the captured
hidden states, and its output, a value for every word of the vocabulary, would take more memory than all else.
"""

from mmq_sweeps.quantization.calibration.block_runner import BlockRunner, block_statistics
from mmq_sweeps.quantization.calibration.calls import Pass
from mmq_sweeps.quantization.calibration.collector import Collector
from mmq_sweeps.quantization.calibration.recording import capture
from mmq_sweeps.quantization.shared_stats import SharedStats

__all__ = ["BlockRunner", "Collector", "Pass", "SharedStats", "block_statistics", "capture"]
