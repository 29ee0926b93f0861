"""Recognize quantized linears by the names, dtypes and shapes of their tensors. Imports no torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mmq_sweeps.models.quantized.tensors import StoredTensor

Tensors = Mapping[str, StoredTensor]
PACKED, INTEGERS, FLOATS = "pack-quantized", "int-quantized", "float-quantized"
GPTQ, AWQ, BNB4, BNB8, FP8 = "gptq", "awq", "bnb-4bit", "bnb-8bit", "fp8"
WORD = 32
WIDTHS = range(1, 9)
# Dtypes of weights that are numbers of a grid rather than weights.
CODES = ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2", "F4", "F6_E2M3", "F6_E3M2")
# Tensors of quantized linears beside or in place of ``weight``, longest first so that names are split right.
SUFFIXES = sorted(
    (
        "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale",
        "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point", "weight_scale_inv",
        "activation_scale", "qweight", "qzeros", "scales", "g_idx", "SCB", "weight_format", "weight.absmax",
        "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", "weight.quant_state.bitsandbytes__nf4",
        "weight.quant_state.bitsandbytes__fp4",
    ),
    key=len,
    reverse=True,
)  # fmt: skip


@dataclass(frozen=True)
class QuantizedLinear:
    """A linear as its tensors show it; ``name`` is that of the checkpoint, which the model's may differ from.

    * ``widths``: bit-widths that fit the tensors; more than one if a row is too short to tell.
    * ``group_size``: weights that share a scale, ``channel`` (a row) or ``tensor``.
    * ``tensors``: all but the bias, by suffix.
    * ``old_words``: packed as compressed-tensors did until 0.17.1.
    * ``lacks``: suffixes of tensors without which it cannot be read.
    """

    name: str
    layout: str
    shape: tuple[int, int]
    widths: tuple[int, ...]
    group_size: int | str
    symmetric: bool
    tensors: Tensors
    old_words: bool = False
    packed_zeros: bool = False
    lacks: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def bits(self) -> int:
        """Stored bits: codes, scales, zeros and all else beside the bias."""
        return 8 * sum(tensor.size for tensor in self.tensors.values())

    @property
    def stored_as(self) -> str:
        """Layout and bit-width, such as ``gptq 4``; ``?`` if the width is not known."""
        return f"{self.layout} {'/'.join(map(str, self.widths)) or '?'}"

    @property
    def width(self) -> float:
        """Bits of a code; as stored if the width is not known."""
        return self.widths[0] if self.widths else self.bits / self.weights


def find_linears(tensors: Tensors) -> dict[str, QuantizedLinear]:
    """Return the quantized linears among ``tensors`` by name. A ValueError names one whose tensors fit no layout."""
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        suffix = next((suffix for suffix in SUFFIXES if name.endswith(f".{suffix}")), None)
        if suffix is not None:
            modules.setdefault(name.removesuffix(f".{suffix}"), {})[suffix] = tensor
    return {name: _linear(name, own) for name, own in modules.items() if _is_quantized(own)}


def _is_quantized(own: Tensors) -> bool:
    return bool(own.keys() & {"weight_packed", "qweight"}) or ("weight" in own and own["weight"].dtype in CODES)


def _linear(name: str, own: Tensors) -> QuantizedLinear:
    try:
        return _reader_of(own)(name, own)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, TypeError) as error:
        shapes = ", ".join(f"{suffix} {tensor.dtype} {list(tensor.shape)}" for suffix, tensor in sorted(own.items()))
        raise ValueError(f"{name}: its tensors fit no layout that is known here ({shapes}): {error}") from error


def _reader_of(own: Tensors) -> Callable[[str, Tensors], QuantizedLinear]:
    if "weight_packed" in own:
        return _packed if own["weight_packed"].dtype == "I32" else _packed_floats
    if "qweight" in own:
        return _words
    if any(suffix.startswith("weight.") for suffix in own):
        return _four_bit_blocks
    return _eight_bits


def _packed(name: str, own: Tensors) -> QuantizedLinear:
    """Read a linear of compressed-tensors with several codes in a 32-bit word."""
    lacks = tuple(suffix for suffix in ("weight_scale", "weight_shape") if suffix not in own)
    rows, words = own["weight_packed"].shape
    scale, zero = own.get("weight_scale"), own.get("weight_zero_point")
    columns = _stored_shape(own["weight_shape"])[1] if "weight_shape" in own else words * WORD
    widths = tuple(bits for bits in WIDTHS if math.ceil(columns * bits / WORD) == words)
    old = () if widths else tuple(bits for bits in WIDTHS if math.ceil(columns / (WORD // bits)) == words)
    if not (widths or old) and not lacks:
        raise ValueError(f"{words} words a row hold {columns} codes at no width")
    return QuantizedLinear(
        name=name,
        layout=PACKED,
        shape=(rows, columns),
        widths=widths or old,
        group_size=_group_size(scale, rows, columns),
        symmetric=zero is None,
        tensors=own,
        old_words=bool(old),
        packed_zeros=zero is not None and zero.dtype == "I32",
        lacks=lacks,
    )


def _packed_floats(name: str, own: Tensors) -> QuantizedLinear:
    """Read a linear of 4-bit floating-point codes, two in a byte (NVFP4, MXFP4)."""
    rows, packed = own["weight_packed"].shape
    layout = "nvfp4-pack-quantized" if "weight_global_scale" in own else "mxfp4-pack-quantized"
    size = _group_size(own.get("weight_scale"), rows, 2 * packed)
    lacks = () if "weight_scale" in own else ("weight_scale",)
    return QuantizedLinear(name, layout, (rows, 2 * packed), (4,), size, True, own, lacks=lacks)


def _words(name: str, own: Tensors) -> QuantizedLinear:
    """Read a linear of GPTQ (codes packed along inputs) or AWQ (along outputs)."""
    packed, scales, zeros = own["qweight"].shape, own.get("scales"), own.get("qzeros")
    lacks = tuple(suffix for suffix in ("scales", "qzeros") if suffix not in own)
    if lacks:
        return QuantizedLinear(name, GPTQ, (packed[1], packed[0]), (), "channel", False, own, lacks=lacks)
    assert scales is not None
    assert zeros is not None
    groups, outputs = scales.shape
    bits = zeros.shape[1] * WORD // outputs
    along_outputs = packed[1] == zeros.shape[1] != outputs
    inputs = packed[0] if along_outputs else packed[0] * WORD // bits
    if (packed[1] if not along_outputs else outputs) != outputs or bits not in WIDTHS:
        raise ValueError(f"{bits} bits for {outputs} outputs")
    size: int | str = "channel" if groups == 1 else math.ceil(inputs / groups)
    return QuantizedLinear(name, AWQ if along_outputs else GPTQ, (outputs, inputs), (bits,), size, False, own)


def _four_bit_blocks(name: str, own: Tensors) -> QuantizedLinear:
    """Read a linear that bitsandbytes packed into bytes, whose shape stands in a tensor of JSON."""
    state = next((tensor for suffix, tensor in own.items() if "quant_state" in suffix), None)
    if state is None:
        count = 2 * own["weight"].count
        return QuantizedLinear(
            name, BNB4, (1, count), (4,), "tensor", False, own, lacks=("weight.quant_state.bitsandbytes__*",)
        )
    told = json.loads(state.read())
    rows, columns = told["shape"]
    return QuantizedLinear(name, BNB4, (rows, columns), (4,), int(told["blocksize"]), True, own)


def _eight_bits(name: str, own: Tensors) -> QuantizedLinear:
    """Read a linear with a code in each byte: int8 or floating-point of 8 bits."""
    weight = own["weight"]
    rows, columns = weight.shape
    if weight.dtype not in ("I8", "F8_E4M3", "F8_E5M2"):
        raise ValueError(f"its weight is {weight.dtype}")
    if "SCB" in own:
        return QuantizedLinear(name, BNB8, (rows, columns), (8,), "channel", True, own)
    if "weight_scale_inv" in own:
        scale = own["weight_scale_inv"]
        block = math.ceil(columns / scale.shape[-1]) if len(scale.shape) == 2 else "tensor"
        return QuantizedLinear(name, FP8, (rows, columns), (8,), block, True, own)
    lacks = () if "weight_scale" in own else ("weight_scale",)
    integers = weight.dtype == "I8"
    # An int8 may hold a code of fewer bits; the configuration says so.
    widths = tuple(WIDTHS)[::-1] if integers else (8,)
    return QuantizedLinear(
        name=name,
        layout=INTEGERS if integers else FLOATS,
        shape=(rows, columns),
        widths=widths,
        group_size=_group_size(own.get("weight_scale"), rows, columns),
        symmetric="weight_zero_point" not in own,
        tensors=own,
        lacks=lacks,
    )


def _stored_shape(tensor: StoredTensor) -> tuple[int, int]:
    """Read the two int64 (or int32) of a ``weight_shape``."""
    rows, columns = struct.unpack("<2q" if tensor.dtype == "I64" else "<2i", tensor.read())
    return rows, columns


def _group_size(scale: StoredTensor | None, rows: int, columns: int) -> int | str:
    if scale is None or scale.count == 1:
        return "tensor"
    if len(scale.shape) == 2 and scale.shape[0] == rows and scale.shape[1] > 1:
        return math.ceil(columns / scale.shape[1])
    return "channel"
