"""Compare GPTQ and AWQ with the libraries of today; sections of ``benchmarks/solvers.py``.

    peers      GPTQ: the six linears of a block of OPT-2.7b at four bit-widths from activations, and layers at 4 bits from
               their Hessians, against llm-compressor and GPTQModel
    awq_peers  AWQ's search for the same block at 4 bits in groups of 128, against llm-compressor's ``AWQModifier``
    awq_widths_peers  the same at 2, 3, 4 and 8 bits

Each library gets a virtual environment of its own in ``~/.cache/mmq-benchmarks`` with the torch that we run, because they
pin other releases of transformers; making them takes minutes, once. Every side runs in a process of its own with the same
threads and reads the same weights and activations from a file. Seconds are the processor's; ratios are medians of pairs, ours
and the other side in turns. Both sides visit columns by falling diagonal of the Hessian, on asymmetric grids from least to
largest for each row, and Hessians are summed once an input.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.solvers_gptq import BLOCK
from benchmarks.timing import Section, correlated_inputs, progress, random_weight

PEERS = {"llm-compressor": ("llmcompressor", "0.14.0.1", "llm_compressor.py"),
         "GPTQModel": ("gptqmodel", "7.6.0", "gptqmodel_solver.py")}  # fmt: skip
ENVIRONMENTS = Path.home() / ".cache" / "mmq-benchmarks"
SCRIPTS = Path(__file__).parent / "peers"
BITS = (2, 3, 4, 8)
BATCHES, TOKENS = 8, 512
# Every hundredth channel of an activation is an outlier.
OUTLIERS, OUTLIER_SIZE = 100, 10
# Sizes are divided by this, to try the benchmark itself.
divisor = 1


def python_of(package: str, version: str) -> str:
    """Return the interpreter of an environment that has ``package``; makes it on first use."""
    folder = ENVIRONMENTS / f"{package}-{version}"
    python, made = folder / "bin" / "python", folder / "made"
    if not made.exists():
        progress(f"making {folder}: pip install {package}=={version}")
        venv.create(folder, with_pip=True, clear=True)
        wanted = [f"{package}=={version}", f"torch=={torch.__version__.split('+')[0]}"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        made.touch()
    return str(python)


class Side:
    """A process that solves on request."""

    def __init__(self, python: str, script: str, data: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "OMP_WAIT_POLICY": "PASSIVE",
                       "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # fmt: skip
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [python, str(SCRIPTS / script), str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        self._answer()

    def solve(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                answer: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
                return answer
        raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}; its output is above")


@contextmanager
def sides(names: Sequence[str]) -> Iterator[dict[str, Side]]:
    """Start our process and those of ``names``, with the block's weights and activations in a file."""
    pythons = {name: python_of(*PEERS[name][:2]) for name in names}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as started:
        data = Path(folder, "block.pt")
        save_block(data)
        found = {"ours": Side(sys.executable, "ours.py", data)}
        started.callback(found["ours"].close)
        for name, python in pythons.items():
            found[name] = Side(python, PEERS[name][2], data)
            started.callback(found[name].close)
        yield found


def save_block(path: Path) -> None:
    weights, inputs = {}, {}
    for seed, (name, members) in enumerate(BLOCK.items()):
        for index, (member, (rows, columns)) in enumerate(members.items()):
            weights[member] = random_weight(rows // divisor, columns // divisor, 10 * seed + index)
            width = columns // divisor
        x = torch.cat(correlated_inputs(width, BATCHES, TOKENS, seed))
        x[:, :, ::OUTLIERS] *= OUTLIER_SIZE
        inputs[name] = x
    torch.save({"weights": weights, "inputs": inputs}, path)


def compare(found: Mapping[str, Side], request: Mapping[str, Any], pairs: int) -> dict[str, Any]:
    """Solve the same on all sides in turns; return seconds, ratios to ours and the largest ratios of output errors."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in found}
    for pair in range(pairs):
        for name in list(found)[:: -1 if pair % 2 else 1]:
            answers[name].append(found[name].solve({**request, "errors": not pair}))
            progress(f"{request['task']}, pair {pair + 1} of {pairs}, {name}: {answers[name][-1]['seconds']:.1f} s")
    ours = answers.pop("ours")
    rows = {"ours_seconds": statistics.median(answer["seconds"] for answer in ours), "peers": {}}
    for name, theirs in answers.items():
        ratios = [their["seconds"] / our["seconds"] for our, their in zip(ours, theirs, strict=True)]
        errors = {
            member: [own / other for own, other in zip(values, theirs[0]["errors"][member], strict=True)]
            for member, values in ours[0]["errors"].items()
        }
        rows["peers"][name] = {
            "seconds": statistics.median(answer["seconds"] for answer in theirs),
            "ratio": statistics.median(ratios), "ratios": ratios, "error_ratios": errors,
            "error_ratio": total(ours[0]["errors"], theirs[0]["errors"]),
        }  # fmt: skip
    return rows


def total(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]) -> list[float]:
    """Return the sums of our output errors over theirs, by bit-width."""
    return [
        sum(a) / sum(b)
        for a, b in zip(zip(*ours.values(), strict=True), zip(*theirs.values(), strict=True), strict=True)
    ]


LINEARS = {name: list(members) for name, members in BLOCK.items()}


def measure_peers(pairs: int) -> dict[str, Any]:
    rows = []
    with sides(list(PEERS)) as found:
        layers = [({"out": LINEARS["out"]}, "2560 x 2560"), ({"fc2": LINEARS["fc2"]}, "2560 x 10240")]
        for linears, label in layers:
            request = {"task": "gptq_layer", "linears": linears, "bits": [4], "from_gram": True}
            rows.append({"of": f"{label}, 4 bits, from its Hessian", "bits": [4], **compare(found, request, pairs)})
        request = {"task": "gptq_block", "linears": LINEARS, "bits": BITS, "from_gram": False}
        what = f"six linears, bits {', '.join(map(str, BITS))}, from {BATCHES * TOKENS} tokens"
        rows.append({"of": what, "bits": BITS, **compare(found, request, pairs)})
    return {"rows": rows, "divisor": divisor}


def measure_awq(pairs: int, bits: Sequence[int] = (4,)) -> dict[str, Any]:
    with sides(["llm-compressor"]) as found:
        request = {"task": "awq_block", "linears": LINEARS, "bits": bits, "from_gram": False}
        what = f"six linears, bits {', '.join(map(str, bits))}, groups of 128, from {BATCHES * TOKENS} tokens"
        return {"rows": [{"of": what, "bits": bits, **compare(found, request, pairs)}], "divisor": divisor}


def lines(found: Mapping[str, Any]) -> Iterable[str]:
    if found["divisor"] > 1:
        yield f"sizes divided by {found['divisor']}"
    for row in found["rows"]:
        yield f"{row['of']}: ours {row['ours_seconds']:.2f} s of the processor"
        for name, peer in row["peers"].items():
            errors = ", ".join(f"{ratio:.4f}" for ratio in peer["error_ratio"])
            largest = max(value for values in peer["error_ratios"].values() for value in values)
            yield (
                f"  {name} {PEERS[name][1]} {peer['seconds']:.2f} s, {peer['ratio']:.1f} times (pairs: "
                f"{', '.join(f'{ratio:.1f}' for ratio in peer['ratios'])}); output error, ours over theirs: {errors}, "
                f"of a linear {largest:.4f} at most"
            )


SECTIONS: dict[str, Section] = {
    "peers": Section(measure_peers, lines),
    "awq_peers": Section(measure_awq, lines),
    "awq_widths_peers": Section(lambda pairs: measure_awq(pairs, BITS), lines),
}
