"""Tell which loaders take a quantized checkpoint, and why others do not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement

from mmq_sweeps.errors import some_of
from mmq_sweeps.identity.loads_in import TRANSFORMERS, VLLM
from mmq_sweeps.models.quantized.configuration import BITSANDBYTES, COMPRESSED_TENSORS
from mmq_sweeps.models.quantized.layouts import FLOATS, INTEGERS, PACKED, QuantizedLinear
from mmq_sweeps.models.quantized.names import FittedCheckpoint

SHOWN = 3
# From a method to the packages, as pip names them, that transformers asks for; and their names for ``import``.
PACKAGES = {
    COMPRESSED_TENSORS: {"compressed-tensors": "compressed_tensors"},
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "awq": {"gptqmodel": "gptqmodel", "accelerate": "accelerate"},
    "auto-round": {"auto-round": "auto_round"},
    BITSANDBYTES: {"bitsandbytes": "bitsandbytes", "accelerate": "accelerate"},
    "fp8": {"accelerate": "accelerate"},
    "hqq": {"hqq": "hqq"},
    "torchao": {"torchao": "torchao"},
    "quanto": {"optimum-quanto": "optimum.quanto"},
}
# Releases of compressed-tensors that read the words of these widths as they are written since.
SINCE = {2: "0.15", 4: "0.15", 8: "0.15", 3: "0.18", 5: "0.18", 6: "0.18", 7: "0.18", 1: "0.18"}
OF_COMPRESSED_TENSORS = (PACKED, INTEGERS, FLOATS, "nvfp4-pack-quantized", "mxfp4-pack-quantized")
GPTQ_WIDTHS, AWQ_WIDTHS = (2, 3, 4, 8), (2, 4, 8)
# Linears that vLLM joins into one and that must therefore have one width.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True)
class Verdict:
    """Whether ``loader`` (of ``LOADERS``) takes a checkpoint: True, False, or None if that was not tried.

    ``reasons`` are sentences on the obstacles. ``needs`` are the packages that it takes beside the loader, as for pip.
    """

    loader: str
    loads: bool | None
    reasons: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def told(self) -> str:
        """Return the verdict as a sentence, without its loader."""
        answer = {True: "yes", False: "no", None: "not tried"}[self.loads]
        needs = f", with {' and '.join(self.needs)}" if self.needs and self.loads is not False else ""
        return f"{answer}{needs}{': ' if self.reasons else ''}{'; '.join(self.reasons)}"


def verdicts(fitted: FittedCheckpoint) -> list[Verdict]:
    """Return the verdicts of transformers and of vLLM on a CPU."""
    return [of_transformers(fitted), of_vllm(fitted)]


def of_transformers(fitted: FittedCheckpoint) -> Verdict:
    """Tell whether the installed transformers loads every weight as it is stored."""
    reasons = list(faults(fitted))
    configuration = fitted.checkpoint.configuration
    if configuration is None:
        return Verdict(TRANSFORMERS, not reasons, tuple(reasons))
    if not configuration.read_by_transformers:
        reasons.append(f"reads no quantization in {configuration.source}, only quantization_config in config.json")
    known = configuration.method in PACKAGES
    if not known:
        reasons.append(f"quant_method {configuration.method} is not known here")
    reasons += _of_method(fitted)
    needs = tuple(_needs(configuration.method, fitted.linears.values()))
    return Verdict(TRANSFORMERS, (not reasons) if known or not reasons else None, tuple(reasons), needs)


def faults(fitted: FittedCheckpoint) -> Iterator[str]:
    """Yield the faults of a checkpoint whoever loads it: names and tensors that contradict each other."""
    checkpoint = fitted.checkpoint
    if checkpoint.configuration is not None:
        yield from checkpoint.configuration.problems
        if not checkpoint.linears:
            yield "its files hold no quantized weights"
    for names, what in (
        (fitted.missing, "weights are missing, which a loader draws at random"),
        (fitted.unexpected, "tensors have no place in the model"),
        (fitted.unread, "linears are stored quantized, and no target names them, so their weights are drawn at random"),
        (
            fitted.unstored,
            "linears are named by the configuration and not stored so, so their weights are drawn at random",
        ),
        (fitted.tied, "quantized linears are tied to another module, which cannot be loaded so: untie them"),
        (fitted.embeddings, "embeddings are quantized, which cannot be loaded"),
    ):
        if names:
            yield f"{len(names)} {what} ({some_of(names)})"
    if fitted.empty_targets:
        yield f"{len(fitted.empty_targets)} targets match no module of {_class(fitted)} ({some_of(fitted.empty_targets)})"
    yield from _first(fitted.contradictions)


def _of_method(fitted: FittedCheckpoint) -> Iterator[str]:
    """Yield why transformers does not load a sound checkpoint of its method."""
    configuration = fitted.checkpoint.configuration
    assert configuration is not None
    linears = fitted.linears
    widths = sorted({width for linear in linears.values() for width in linear.widths})
    if configuration.method == COMPRESSED_TENSORS:
        status = configuration.values.get("quantization_status")
        if status != "compressed":
            yield f"quantization_status is {status}, not compressed, so that the weights are drawn at random"
        if zeros := [name for name, linear in linears.items() if linear.packed_zeros]:
            yield f"{len(zeros)} linears have packed zeros, which it gives another shape ({some_of(zeros)})"
        if odd := [name for name, linear in linears.items() if linear.layout not in OF_COMPRESSED_TENSORS]:
            yield f"{len(odd)} linears are not in a layout of compressed-tensors ({some_of(odd)})"
    elif configuration.method == "gptq":
        if fitted.model.main_input_name != "input_ids":
            yield f"its GPTQ takes text models only, and {_class(fitted)} begins with {fitted.model.main_input_name}"
        yield from _one_width(widths, GPTQ_WIDTHS, "GPTQ")
        if configuration.values.get("dynamic"):
            yield "it ignores dynamic, which GPTQModel reads"
    elif configuration.method == "awq":
        yield from _one_width(widths, AWQ_WIDTHS, "AWQ")


def _one_width(widths: list[int], allowed: Iterable[int], method: str) -> Iterator[str]:
    if len(widths) > 1:
        yield f"its {method} takes one width a checkpoint, not {', '.join(map(str, widths))} bits"
    if odd := [width for width in widths if width not in allowed]:
        yield f"its {method} takes {', '.join(map(str, allowed))} bits, not {', '.join(map(str, odd))}"


def _needs(method: str, linears: Iterable[QuantizedLinear]) -> Iterator[str]:
    for package in PACKAGES.get(method, ()):
        if method == COMPRESSED_TENSORS:
            since = [SINCE[linear.widths[0]] for linear in linears if linear.layout == PACKED and linear.widths]
            yield f"{package}>={max(since, default='0.15')}"
        else:
            yield package


def lacking_packages(fitted: FittedCheckpoint) -> list[str]:
    """Return the packages that transformers takes beside itself and that are not installed, or older, as for pip."""
    configuration = fitted.checkpoint.configuration
    if configuration is None:
        return []
    installed = packages(configuration.method)
    needs = [Requirement(need) for need in _needs(configuration.method, fitted.linears.values())]
    return [
        str(need)
        for need in needs
        if (version := installed[need.name]) is None or not need.specifier.contains(version, prereleases=True)
    ]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def packages(method: str) -> dict[str, str | None]:
    """Return the packages that loading ``method`` takes, as for pip, with the installed version; None for those absent."""
    return {
        package: importlib.metadata.version(package) if _installed(module) else None
        for package, module in PACKAGES.get(method, {}).items()
    }


def of_vllm(fitted: FittedCheckpoint) -> Verdict:
    """Tell whether vLLM on a CPU (0.32) takes it, by trials there."""
    configuration = fitted.checkpoint.configuration
    wrong = tuple(faults(fitted))
    if configuration is None:
        return Verdict(VLLM, not wrong, wrong)
    if configuration.method != COMPRESSED_TENSORS or any(
        scheme.activations or scheme.kind != "int" for scheme in configuration.schemes
    ):
        return Verdict(VLLM, False if wrong else None, wrong)
    reasons = (*wrong, *_vllm_rules(fitted.linears))
    return Verdict(VLLM, not reasons, reasons)


def _vllm_rules(linears: Mapping[str, QuantizedLinear]) -> Iterator[str]:
    if other := {one.stored_as for one in linears.values() if one.layout != PACKED or one.widths != (4,)}:
        yield f"takes 4 bits packed only, not {', '.join(sorted(other))}"
    for what, keys in (("the connector", ("qformer",)), ("the head", ("lm_head",))):
        if named := [name for name in linears if any(key in name.split(".") for key in keys)]:
            yield f"takes {what} dense only ({some_of(named)})"
    for names in FUSED:
        if uneven := _uneven(linears, names):
            yield f"joins {', '.join(names)}, which must be alike ({some_of(uneven)})"


def _uneven(linears: Mapping[str, QuantizedLinear], names: tuple[str, ...]) -> list[str]:
    """Return the modules that hold linears ``names`` of which some are dense or have another width."""
    found: dict[str, set[Any]] = {}
    for name, linear in linears.items():
        before, _, last = name.rpartition(".")
        if last in names:
            found.setdefault(before, set()).add((last, linear.widths, linear.group_size))
    alike = {before: {how[1:] for how in own} for before, own in found.items()}
    return [before for before, own in found.items() if len(own) < len(names) or len(alike[before]) > 1]


def _class(fitted: FittedCheckpoint) -> str:
    return type(fitted.model).__name__


def _first(sentences: tuple[str, ...]) -> Iterator[str]:
    yield from sentences[:SHOWN]
    if len(sentences) > SHOWN:
        yield f"and {len(sentences) - SHOWN} more linears are stored otherwise than said"
