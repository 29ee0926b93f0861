"""Measure the export of BLIP-2 OPT-2.7b, all linears in 4 bits, beside llm-compressor's save; a section of ``export.py``.

The model has random weights and, by default, a third of its blocks. Loading and rounding are done before the clock starts: it
counts writing the weights, and for ours the checksums of the files. Each side is a process of its own, whose peak resident
memory includes the loaded model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
# A third of the vision model's 39, more of the language model's 32, and all of the Q-Former's 12 and 1 more.
BLOCKS = 13
GROUP_SIZE, BITS = 128, 4
LARGEST_MEMORY, LARGEST_TIME, LARGEST_SIZE = 1.25, 0.5, 1.01

THEIRS = """
import json, resource, sys, time
import torch
from compressed_tensors.offload import dispatch_model
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import Blip2ForConditionalGeneration

checkpoint, out = sys.argv[1:3]
model = Blip2ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16)
weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
oneshot(model=model, recipe=QuantizationModifier(config_groups=groups, ignore=["re:.*lm_head", "re:.*language_projection"]))
started = time.perf_counter()
model.save_pretrained(out, save_compressed=True)
print(json.dumps({"seconds": time.perf_counter() - started,
                  "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="blocks of every part (default: %(default)s)")
    parser.add_argument(
        "--llm-compressor", metavar="PYTHON", help="an interpreter that has llmcompressor; else ours alone"
    )


def measure_export(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.full_size import MODEL, write_checkpoint

    checkpoint = Path(tempfile.gettempdir()) / "mmq_full_size" / f"{MODEL}_{options.blocks}"
    write_checkpoint(checkpoint, options.blocks)
    original = weight_bytes(checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch, "store")
        run([sys.executable, "-m", "benchmarks.export_model", "quantize", checkpoint, store])
        ours = run([sys.executable, "-m", "benchmarks.export_model", "write", checkpoint, store, Path(scratch, "ours")])
        found = {"blocks": options.blocks, "original_bytes": original, "ours": ours}
        if options.llm_compressor:
            found["theirs"] = run([options.llm_compressor, "-c", THEIRS, checkpoint, Path(scratch, "theirs")])
            found["theirs"]["bytes"] = weight_bytes(Path(scratch, "theirs"))
    return found


def run(command: list[Any]) -> dict[str, Any]:
    """Run a process and return its last line of output, read as JSON."""
    done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def export_lines(found: Mapping[str, Any]) -> Iterable[str]:
    ours, original = found["ours"], found["original_bytes"]
    yield f"BLIP-2 OPT-2.7b, {found['blocks']} blocks a part, {original / 1e9:.2f} GB of bfloat16 weights"
    yield (
        f"peak resident memory {ours['peak_bytes'] / original:.2f} times the weights (to be {LARGEST_MEMORY} or less), "
        f"{(ours['peak_bytes'] - ours['loaded_bytes']) / 1e6:.0f} MB beside the loaded model"
    )
    yield (
        f"packed linears {ours['packed_bytes'] / ours['exact_bytes']:.4f} times their exact size "
        f"(to be {LARGEST_SIZE} or less); the whole {ours['bytes'] / 1e9:.2f} GB"
    )
    yield f"written in {ours['seconds']:.1f} s, of which checksums {ours['checksum_seconds']:.1f} s"
    if theirs := found.get("theirs"):
        yield (
            f"llm-compressor {theirs['seconds']:.1f} s and {theirs['peak_bytes'] / original:.2f} times the weights, "
            f"{theirs['bytes'] / 1e9:.2f} GB; ours takes {ours['seconds'] / theirs['seconds']:.2f} of its time "
            f"(to be {LARGEST_TIME} or less)"
        )


def opened(checkpoint: Path, store: Path) -> Any:
    """Return the session and the cell that rounds every linear of the blocks to 4 bits."""
    from hydra import compose, initialize_config_dir

    from benchmarks.full_size import MODEL
    from mmq_sweeps.config import schema
    from mmq_sweeps.config.paths import conf_dir
    from mmq_sweeps.config.sweep import plan
    from mmq_sweeps.execution.session import Sessions
    from mmq_sweeps.store.store import Store

    schema.register()
    overrides = [
        f"model={MODEL}", f"model.checkpoint={checkpoint}", "model.dtype=bfloat16", "model.device=cpu",
        "task=scenes_caption", "task.prompt=''", "tracker=none", "component=all", f"bits={BITS}", "method=rtn",
        f"method.group_size={GROUP_SIZE}", "method.symmetric=true", f"store.dir={store}",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        sweep = plan([compose("config", overrides=overrides)])
    cell = next(cell for cell in sweep.cells if cell.parts)
    return Sessions(sweep, Store.open(str(store))).open(cell), cell


def quantize(checkpoint: Path, store: Path) -> dict[str, Any]:
    from mmq_sweeps.reporting.progress import Progress

    session, cell = opened(checkpoint, store)
    with Progress(1) as progress:
        failed = session.compute(session.requests(cell), progress)
    assert not failed, failed
    return {}


def write(checkpoint: Path, store: Path, out: Path) -> dict[str, Any]:
    """Write the weights as the command does, and return seconds, peak memory and sizes."""
    import torch

    from mmq_sweeps.export.choice import Choice
    from mmq_sweeps.export.formats.compressed_tensors import CompressedTensors
    from mmq_sweeps.export.tensors import ExportedTensors
    from mmq_sweeps.export.weights import CellWeights
    from mmq_sweeps.export.writer import WeightFiles, sha256, size_of
    from mmq_sweeps.memory import peak_memory, reset_peak_memory
    from mmq_sweeps.reporting.progress import Progress

    session, cell = opened(checkpoint, store)
    form = CompressedTensors()
    with Progress(1) as progress:
        tensors = ExportedTensors(session.loaded, CellWeights(session, cell, progress), Choice(form, torch.bfloat16))
        loaded = peak_memory()["process"]
        reset_peak_memory()
        out.mkdir()
        started = time.perf_counter()
        files = WeightFiles(out, tensors.specs)
        with files:
            for name, tensor in tensors:
                files.write(name, tensor)
        written = time.perf_counter()
        for path in out.iterdir():
            sha256(path)
        ended = time.perf_counter()
    packed = [size_of(one) for spec in tensors.packed.values() for one in form.layout(spec, torch.bfloat16).values()]
    exact = sum(spec.format.stored_bits(spec.shape) for spec in tensors.packed.values()) / 8
    return {
        "seconds": ended - started, "checksum_seconds": ended - written, "peak_bytes": peak_memory()["process"],
        "loaded_bytes": loaded, "bytes": files.bytes, "packed_bytes": sum(packed), "exact_bytes": exact,
    }  # fmt: skip


def main() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    step, *paths = sys.argv[1:]
    found = {"quantize": quantize, "write": write}[step](*map(Path, paths))
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
