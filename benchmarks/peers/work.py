"""Solve the tasks of ``benchmarks/solvers_peers.py`` in a process of its own, which needs torch and nothing of ours.

Reads tasks from standard input, a line of JSON each, and answers with lines of JSON after ``RESULT``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

# Results by linear, a restored weight for each bit-width.
Restored = dict[str, list[Tensor]]


def serve(tasks: Mapping[str, Callable[..., Restored]], path: str) -> None:
    """Answer requests until standard input ends; ``path`` has weights and inputs as ``solvers_peers`` saved them."""
    # The output of a library must not mix with the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_grad_enabled(False)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    data: dict[str, Any] = torch.load(path, mmap=True)
    answers.write("RESULT {}\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        # In memory of this process, as activations of a model are.
        inputs = {name: data["inputs"][name].clone() for name in request["linears"]}
        weights = {
            name: {key: data["weights"][key].clone() for key in keys} for name, keys in request["linears"].items()
        }
        given = [torch.cat(list(x)) for x in inputs.values()] if request["from_gram"] else []
        grams = {name: x.T @ x / len(x) for name, x in zip(inputs, given, strict=False)}
        started, wall = time.process_time(), time.perf_counter()
        restored = tasks[request["task"]](weights, grams or inputs, request["bits"])
        answer: dict[str, Any] = {"seconds": time.process_time() - started, "wall": time.perf_counter() - wall}
        if request["errors"]:
            answer["errors"] = errors(weights, inputs, restored)
        answers.write(f"RESULT {json.dumps(answer)}\n")
        answers.flush()
        del inputs, weights, grams, given, restored


def errors(
    weights: Mapping[str, Mapping[str, Tensor]], inputs: Mapping[str, Tensor], restored: Restored
) -> dict[str, list[float]]:
    """Return the squared output error on every fourth token, by linear and bit-width."""
    found: dict[str, list[float]] = {}
    for name, members in weights.items():
        x = inputs[name].flatten(0, 1)[::4]
        for member, weight in members.items():
            found[member] = [float((x @ (weight - own).T).square().sum()) for own in restored[member]]
    return found
