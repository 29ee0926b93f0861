"""Run the command with little memory left once its cell begins: ``run_forked("tests.execution.little_memory", ...)``.

An image asks for 4 MB more than it needs, so that there is room for all that is small: libraries that are refused some
bytes for a thread or a string end the process.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import torch
import transformers

from mmq_sweeps.__main__ import main
from mmq_sweeps.execution import failure_policy

LEFT_BYTES = 400_000_000
MORE_BYTES_AN_IMAGE = 1 << 22


def limited(*arguments: Any) -> Any:
    status = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used + LEFT_BYTES, resource.RLIM_INFINITY))
    return measure(*arguments)


def greedy(self: Any, **inputs: Any) -> Any:
    torch.empty(len(inputs["inputs_embeds"]) * MORE_BYTES_AN_IMAGE, dtype=torch.uint8)
    return generate(self, **inputs)


if __name__ == "__main__":
    measure, generate = failure_policy.run_cell, transformers.GenerationMixin.generate
    failure_policy.run_cell, transformers.GenerationMixin.generate = limited, greedy
    main()
