"""Measure time and memory of a full-size model on this machine: BLIP-2 OPT-2.7b with random weights.

    python benchmarks/full_size.py [--json] [--small] [--methods rtn,gptq] [--folder FOLDER] [--device-map disk]

The published architecture (``mmq_sweeps/models/configs/blip2_opt_2_7b.json``) is filled with random bfloat16 weights
and written once to ``--folder`` (7.5 GB) with a matching processor, as a regular checkpoint. Each method quantizes the
first third of the blocks of each part at ``--bits`` bits, calibrated on ``--samples`` images; then the model answers
``--images`` images with all three parts quantized. Times and memory are those of the real model; answers and scores are
meaningless.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Set before torch is imported, as in the command itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import Blip2Config, Blip2Processor, BlipImageProcessorPil, GenerationConfig, PreTrainedTokenizerFast

from mmq_sweeps.config import schema
from mmq_sweeps.config.model_catalog import read_model
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.sweep import Sweep, plan
from mmq_sweeps.data.scenes.words import VOCABULARY
from mmq_sweeps.execution import environment
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.execution.failure_policy import record_cell
from mmq_sweeps.execution.session import Session, Sessions
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.memory import peak_memory, reset_peak_memory
from mmq_sweeps.models.__main__ import count, describe
from mmq_sweeps.models.shapes import Shape, build_on_meta, find_shape
from mmq_sweeps.quantization.stored_units import load
from mmq_sweeps.reporting.model_tables import draw_models
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.reporting.table import output_console
from mmq_sweeps.store.store import Store

MODEL = "blip2_opt_2_7b"
PARTS = ("vision", "connector", "language")
ALL = "all three"
# Shard size, which limits the memory of writing and reading.
SHARD_BYTES = 1 << 30
# Standard deviation of the published models' initial weights; blocks normalize their inputs, so nothing overflows.
SPREAD = 0.02
SMALL_BLOCKS = 3
# CLIP's constants, as in the published checkpoint's processor.
MEAN, DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PAD, TEXT_END, UNKNOWN, IMAGE = "<pad>", "</s>", "<unk>", "<image>"


def write_checkpoint(folder: Path, blocks: int | None) -> None:
    """Write the model to ``folder``, with ``blocks`` blocks a part if given; skip if it exists."""
    if (folder / "model.safetensors.index.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(blocks)
    processor = make_processor(config)
    processor.save_pretrained(folder)
    config.save_pretrained(folder)
    ends = {"bos_token_id": config.text_config.bos_token_id, "eos_token_id": config.text_config.eos_token_id}
    GenerationConfig(**ends, pad_token_id=config.text_config.pad_token_id).save_pretrained(folder)
    write_weights(folder, config)


def model_config(blocks: int | None) -> Blip2Config:
    values = dict(find_shape(read_model(MODEL)).values)
    config = Blip2Config.from_dict(values)
    config.architectures = [read_model(MODEL)["class_name"]]
    config.dtype = "bfloat16"
    # The tokenizer has OPT's published ids of special tokens, and the image token last.
    config.image_token_index = config.text_config.vocab_size - 1
    if blocks is not None:
        for part in (config.vision_config, config.qformer_config, config.text_config):
            part.num_hidden_layers = blocks
    return config


def make_processor(config: Blip2Config) -> Blip2Processor:
    """Return a processor with the published image settings and a word-level tokenizer of the model's vocabulary size."""
    text = config.text_config
    words = {word: index for index, word in enumerate(("<s>", PAD, TEXT_END, UNKNOWN, *VOCABULARY))}
    words |= {f"word{index}": index for index in range(len(words), text.vocab_size - 1)}
    words[IMAGE] = text.vocab_size - 1
    backend = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{TEXT_END} $A", special_tokens=[(TEXT_END, words[TEXT_END])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=TEXT_END, eos_token=TEXT_END, unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE], padding_side="left", model_max_length=512,
    )  # fmt: skip
    pixels = config.vision_config.image_size
    images = BlipImageProcessorPil(size={"height": pixels, "width": pixels}, image_mean=MEAN, image_std=DEVIATION)
    return Blip2Processor(images, tokenizer, num_query_tokens=config.num_query_tokens)


def write_weights(folder: Path, config: Blip2Config) -> None:
    """Write random weights in shards: norms are ones, biases zeros, all others normal."""
    generator = torch.Generator().manual_seed(0)
    model = build_on_meta(read_model(MODEL), Shape(config.to_dict(), ""))
    where: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards(model)):
        tensors = {}
        for name, parameter in names.items():
            if name.endswith("bias"):
                tensors[name] = torch.zeros(parameter.shape, dtype=torch.bfloat16)
            elif parameter.dim() == 1:
                tensors[name] = torch.ones(parameter.shape, dtype=torch.bfloat16)
            else:
                tensors[name] = torch.randn(parameter.shape, generator=generator).mul_(SPREAD).bfloat16()
        file = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shards(model: torch.nn.Module) -> Iterator[dict[str, torch.nn.Parameter]]:
    """Yield the parameters, tied parameters once, in groups of at most ``SHARD_BYTES`` in bfloat16."""
    group: dict[str, torch.nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if group and 2 * sum(one.numel() for one in (*group.values(), parameter)) > SHARD_BYTES:
            yield group
            group = {}
        group[name] = parameter
    yield group


def compose_cells(folder: Path, store: str, arguments: argparse.Namespace) -> Sweep:
    common = [
        f"model={MODEL}", f"model.checkpoint={folder}", "model.dtype=bfloat16", "task=scenes_caption", "tracker=none",
        f"model.device={arguments.device}", f"model.device_map={arguments.device_map or 'null'}",
        f"task.generation={{num_beams: 1, max_new_tokens: {arguments.tokens}}}",
        "task.prompt=''", f"task.limit={arguments.images}",
        f"task.batch_size={arguments.images}", f"calibration.samples={arguments.samples}",
        f"calibration.batch_size={min(4, arguments.samples)}", f"bits={arguments.bits}", f"store.dir={store}",
    ]  # fmt: skip
    schema.register()
    configs = []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for method in arguments.methods:
            for part in (*PARTS, ALL):
                component = "all" if part == ALL else part
                third = [f"component.{one}.blocks=[front]" for one in (PARTS if part == ALL else (part,))]
                configs.append(
                    compose("config", overrides=[*common, f"method={method}", f"component={component}", *third])
                )
    return plan(configs)


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure each method on each part in this process, with the model loaded once and no work shared."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as store_folder, quiet_libraries():
        sweep = compose_cells(folder, store_folder, arguments)
        sessions = Sessions(sweep, Store.open(store_folder))
        reset_peak_memory()
        started = time.perf_counter()
        session = sessions.open(sweep.cells[0])
        loading = {"seconds": time.perf_counter() - started, "peak_memory_bytes": peak_memory()}
        rows = []
        with Progress(len(sweep.cells)) as progress:
            for cell in sweep.cells:
                progress.begin(cell.title())
                one_part = len(cell.parts) == 1
                rows.append(quantized(cell, session, progress) if one_part else answered(cell, session, progress))
                progress.finish(cell.title(), told(rows[-1]))
        described = describe(count(MODEL))
    return {
        "model": described, "folder": str(folder), "blocks": arguments.blocks, "bits": arguments.bits,
        "samples": arguments.samples, "images": arguments.images, "tokens": arguments.tokens,
        "hardware": environment.hardware(), "loading": loading, "cells": rows,
        "peak_resident_bytes": max(one["peak_memory_bytes"]["process"] for one in (loading, *rows)),
    }  # fmt: skip


def quantized(cell: Cell, session: Session, progress: Progress) -> dict[str, Any]:
    """Calibrate and quantize the blocks selected by ``cell``, all of a single part."""
    reset_peak_memory()
    requests = session.requests(cell)
    failed = session.compute(requests, progress)
    peak = peak_memory()
    found, missing = load(requests, session.store)
    return {
        "method": cell.names["method"],
        "part": next(iter(cell.parts)),
        "status": "done" if not missing else f"failed: {next(iter(failed.values()))}",
        "seconds": found.seconds,
        "peak_memory_bytes": peak,
        "quantized_weights": sum(weight.codes.numel() for weight in found.weights.values()),
    }


def answered(cell: Cell, session: Session, progress: Progress) -> dict[str, Any]:
    """Answer the images with the parts of ``cell`` quantized, or at full precision if it selects none."""
    record, items = record_cell(cell, session, progress)
    return {
        "method": record.names["method"],
        "part": ALL if cell.parts else "",
        "status": record.status if record.done else f"failed: {record.error['message']}",
        "seconds": {"evaluate": record.seconds.get("evaluate", 0.0)},
        "peak_memory_bytes": record.peak_memory_bytes,
        "quantized_weights": record.size.get("total", {}).get("quantized_weights", 0),
        "answers": [item["prediction"] for item in items],
    }


def told(one: dict[str, Any]) -> str:
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in one["seconds"].items())
    return f"{one['status']}, {stages}, peak {max(one['peak_memory_bytes'].values()) / 1e9:.2f} GB"


def show(found: dict[str, Any]) -> None:
    console = output_console()
    console.print(draw_models([found["model"]]))
    lines = [
        "",
        f"{'method':<9} {'part':<10} {'quantized':>13} {'calibrate':>9} {'quantize':>9} {'evaluate':>9} {'peak':>7}",
    ]
    lines.append(f"{'':<9} {'':<10} {'weights':>13} {'s':>9} {'s':>9} {'s':>9} {'GB':>7}")
    for one in found["cells"]:
        seconds = [f"{one['seconds'].get(stage, 0):9.1f}" for stage in ("calibrate", "quantize", "evaluate")]
        peak = max(one["peak_memory_bytes"].values()) / 1e9
        line = f"{one['method']:<9} {one['part']:<10} {one['quantized_weights']:>13,} {' '.join(seconds)} {peak:7.2f}"
        lines.append(line if one["status"] == "done" else f"{line}  {one['status']}")
    loading = found["loading"]
    lines += [
        "",
        f"loading  {loading['seconds']:.1f} s, peak {max(loading['peak_memory_bytes'].values()) / 1e9:.2f} GB",
        f"peak resident memory of the whole run  {found['peak_resident_bytes'] / 1e9:.2f} GB",
        f"an answer  {found['cells'][-1]['answers'][0] if found['cells'][-1]['answers'] else ''}",
    ]
    console.out("\n".join(lines), highlight=False)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--small", action="store_true", help=f"{SMALL_BLOCKS} blocks a part, at full width (1 GB)")
    parser.add_argument("--blocks", type=int, help="so many blocks a part")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written once; default: a folder of /tmp")
    parser.add_argument("--scratch", help="where the store is kept while it runs; default: the temporary folder")
    parser.add_argument("--methods", default="uniform,rtn,gptq,awq", help="default: the study's, %(default)s")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8, help="images that are calibrated on")
    parser.add_argument("--images", type=int, default=4, help="images that are answered, in one batch")
    parser.add_argument("--tokens", type=int, default=8, help="the longest answer")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--device-map", help="cpu or disk: where the blocks lie")
    arguments = parser.parse_args()
    arguments.methods = arguments.methods.split(",")
    if arguments.small:
        arguments.blocks = SMALL_BLOCKS
    name = MODEL if arguments.blocks is None else f"{MODEL}_{arguments.blocks}"
    arguments.folder = arguments.folder or Path(tempfile.gettempdir()) / "mmq_full_size" / name
    return arguments


def main() -> None:
    arguments = read_arguments()
    with quiet_libraries():
        write_checkpoint(arguments.folder, arguments.blocks)
    found = measure(arguments.folder, arguments)
    if arguments.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        show(found)


if __name__ == "__main__":
    main()
