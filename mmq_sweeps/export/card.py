"""The model card of an exported folder: its measurements, how it is stored, how to load it and how to get it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmq_sweeps.assignment import text_of
from mmq_sweeps.export.choice import PLAIN
from mmq_sweeps.export.source import Source
from mmq_sweeps.export.tensors import ExportedTensors
from mmq_sweeps.identity.assignment import bits_label, part_order
from mmq_sweeps.identity.cell import FULL_PRECISION_BITS

NAME = "README.md"
# The first release that reads packed codes of 3, 5, 6 and 7 bits as they are written here.
COMPRESSED_TENSORS = "0.18"


@dataclass(frozen=True)
class Stored:
    """How a folder holds a cell: its format, why it is not the preferred one, and the bytes of its weights."""

    format: str
    dtype: str
    why: str
    bytes: int
    tensors: ExportedTensors


def card(source: Source, stored: Stored, command: str) -> str:
    """Return the text of the card; ``command`` is that of the export."""
    names = source.record.names
    title = f"{names['model']} quantized by {names['method']}"
    return "\n".join([
        "---", "library_name: transformers", *_license(source), "---", "",
        f"# {title}", "",
        f"A cell of mmq-sweeps ({source.record.id}), exported and verified: reloaded by transformers "
        f"{_equal(source, stored)}.", "",
        "## What is quantized", "", *_assignment(source), "",
        "## What was measured", "", *_metrics(source), "",
        "## Size", "", *_sizes(source, stored), "",
        "## Load it", "", *_loading(source, stored), "",
        "## Make it again", "", *_commands(source, command), "",
    ])  # fmt: skip


def _equal(source: Source, stored: Stored) -> str:
    measured_in = source.model["dtype"]
    if stored.dtype == measured_in:
        return "it computes the logits that were measured, bit for bit"
    return (
        f"it has the weights that were measured in {measured_in}, bit for bit; it computes in {stored.dtype}, so its logits "
        "and metrics are not those that were measured"
    )


def _license(source: Source) -> list[str]:
    checkpoint = source.model["checkpoint"]
    return [] if checkpoint.startswith(("embedded/", "/", ".", "~")) else [f"base_model: {checkpoint}"]


def _assignment(source: Source) -> Iterator[str]:
    cell = source.record.cell
    yield "| part | bits |"
    yield "|---|---|"
    for part in sorted({*cell["model"]["parts"], *cell["parts"]}, key=part_order):
        selection = cell["parts"].get(part)
        yield f"| {part} | {bits_label(selection) if selection else f'{FULL_PRECISION_BITS}, not quantized'} |"
    yield ""
    yield "As a file for `assignment=FILE` (`docs/assignments.md` of mmq-sweeps):"
    yield ""
    yield "```yaml"
    yield text_of(source.record).rstrip("\n")
    yield "```"


def _metrics(source: Source) -> Iterator[str]:
    record = source.record
    yield f"Task {record.names['task']}, model in {source.model['dtype']}, on {record.hardware.get('cpu') or 'an unknown CPU'}."
    yield ""
    yield "| metric | value | 95% interval | items |"
    yield "|---|---|---|---|"
    for name, metric in record.metrics.items():
        low, high = metric["interval"]
        yield f"| {name} | {metric['value']:.4f} | {low:.4f} to {high:.4f} | {metric['count']} |"
    for name, metric in record.metrics.items():
        for warning in metric.get("warnings", ()):
            yield f"\nWarning of {name}: {warning}"


def _sizes(source: Source, stored: Stored) -> Iterator[str]:
    size = source.record.size["total"]
    yield f"- Bits per weight as the paper counts them: {size['bpw_paper']:.4f}."
    yield (
        f"- Exact bits per weight, with scales and zeros: {size['bpw_exact']:.4f}; {size['size_bytes']:,} bytes, all else in "
        "16 bits."
    )
    yield f"- In this folder: {stored.bytes:,} bytes of weights, format {stored.format}, all else in {stored.dtype}."
    if stored.why:
        yield f"- Why not packed: {stored.why}"
    yield from _remarks(stored)


def _remarks(stored: Stored) -> Iterator[str]:
    tensors = stored.tensors
    packed, quantized = tensors.packed, tensors.quantized
    wider = [spec for spec in packed.values() if not spec.format.symmetric and spec.format.bits < 8]
    if wider and stored.format == "compressed-tensors":
        extra = sum(rows * columns for rows, columns in (spec.shape for spec in wider)) // 8
        yield (
            f"- {len(wider)} linears are asymmetric and stored as symmetric codes q - z of one more bit, which is exact and "
            f"needs no zeros: {extra:,} bytes more than the exact size."
        )
    for kind, what in (("embeddings", "token embeddings"), ("expert", "experts")):
        own = [spec for name, spec in quantized.items() if spec.kind == kind and name not in packed]
        if own and stored.format != PLAIN:
            yield (
                f"- The {what} ({len(own)} tensors) are stored dense, with the values that were measured: no loader reads "
                f"them quantized. They weigh {tensors.dense_bytes(kind):,} bytes."
            )
    if tensors.untied:
        yield "- The head was tied to the embeddings; here the head is packed and the embeddings are dense with equal values."


def _loading(source: Source, stored: Stored) -> Iterator[str]:
    class_name = source.model["class_name"]
    if stored.format == "compressed-tensors":
        yield f"transformers {source.record.versions['transformers']} and compressed-tensors {COMPRESSED_TENSORS} or later:"
        yield ""
    yield "```python"
    yield f"from transformers import AutoProcessor, {class_name}"
    yield ""
    yield f'model = {class_name}.from_pretrained("FOLDER")'
    if stored.format == "compressed-tensors":
        yield "model.hf_quantizer.compressor.decompress_model(model)  # before generate() of BLIP-2 and LLaVA"
    yield 'processor = AutoProcessor.from_pretrained("FOLDER")'
    yield "```"
    if stored.format == "compressed-tensors":
        yield ""
        yield (
            "Do not pass `dequantize=True`: it decodes every linear with the first one's width. `mmq_sweeps.json` has the "
            "checksum of every file."
        )


def _commands(source: Source, command: str) -> Iterator[str]:
    said: Mapping[str, Any] = {**source.commands, "the export": command}
    for what, line in said.items():
        yield f"{what.capitalize()}:"
        yield ""
        yield f"    {line}"
        yield ""
