"""A quantized weight: codes on a grid, dequantized, packed to the tensors to store and restored from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmq_sweeps.methods.formats import codebooks
from mmq_sweeps.methods.formats.format import ROWS, Format
from mmq_sweeps.methods.formats.grid import Grid, fit_grid, round_to_grid
from mmq_sweeps.methods.formats.packing import pack_codes, unpack_codes
from mmq_sweeps.methods.formats.scales import scale_exponents, times_power_of_two

LOOKED_UP_ROWS = 512


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized weight: ``codes`` uint8 ``[O, I]``, ``grid`` and, for AWQ, ``input_scale`` float16 ``[I]``."""

    codes: Tensor
    grid: Grid
    input_scale: Tensor | None = None

    @property
    def format(self) -> Format:
        return self.grid.format

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def exponents(self) -> int:
        """Number of powers of two stored beside the scales."""
        found = self._exponents()
        return 0 if found is None else found.numel()

    def _exponents(self) -> Tensor | None:
        return scale_exponents(self.grid.scale) if self.format.has_exponents else None

    def times_power_of_two(self, exponent: int) -> QuantizedWeight:
        """Return the same codes on a grid with steps ``2**exponent`` times as large."""
        return QuantizedWeight(self.codes, self.grid.times_power_of_two(exponent), self.input_scale)

    def dequantize(self) -> Tensor:
        """Return the weight ``[O, I]`` that the codes represent, in the grid's working precision."""
        scale, zero = self.grid.scale, self.grid.zero
        if self.grid.values is not None:
            return self._looked_up(self.grid.values)
        grouped = self.codes.to(scale.dtype).reshape(*scale.shape, -1)
        weight = grouped.sub_(zero[:, :, None]).mul_(scale[:, :, None]).reshape(self.shape)
        return weight if self.input_scale is None else weight / self.input_scale.to(scale.dtype)

    def _looked_up(self, values: Tensor) -> Tensor:
        """Return the weight of a codebook."""
        scale = self.grid.scale
        found = torch.empty(self.shape, dtype=scale.dtype, device=scale.device)
        # In chunks, because places to look up take eight bytes each.
        for rows, codes, own in zip(
            found.split(LOOKED_UP_ROWS),
            self.codes.split(LOOKED_UP_ROWS),
            values.to(scale.dtype).expand(len(self.codes), -1).split(LOOKED_UP_ROWS),
            strict=True,
        ):
            torch.gather(own, 1, codes.long(), out=rows)
        return found.reshape(*scale.shape, -1).mul_(scale[:, :, None]).reshape(self.shape)

    def pack(self) -> dict[str, Tensor]:
        """Return the tensors to store, ``format.stored_bits(shape, ...)`` bits in total."""
        scale = self.grid.scale
        exponents = self._exponents()
        stored = {"codes": pack_codes(self.codes, self.format.bits)}
        if exponents is not None:
            stored["exponent"] = exponents
            scale = times_power_of_two(scale, -exponents)
        stored["scale"] = scale.to(self.format.scale_dtype)
        if self.format.real_zero:
            stored["zero"] = self.grid.zero.to(self.format.zero_dtype)
        elif self.format.codebook == ROWS and self.grid.values is not None:
            stored["values"] = self.grid.values.to(self.format.scale_dtype)
        elif self.format.has_zeros:
            stored["zero"] = pack_codes(self.grid.zero.to(torch.uint8), self.format.bits)
        if self.input_scale is not None:
            stored["input_scale"] = self.input_scale.to(torch.float16)
        return stored

    @staticmethod
    def unpack(stored: dict[str, Tensor], shape: tuple[int, int], format: Format) -> QuantizedWeight:
        """Restore a weight from ``pack``'s tensors, with the grid in float32."""
        groups = format.groups(shape)
        scale = stored["scale"].to(torch.float32)
        if "exponent" in stored:
            scale = times_power_of_two(scale, stored["exponent"]).to(torch.float32)
        values = None
        if format.codebook is not None:
            zero = torch.zeros_like(scale)
            values = (
                stored["values"].float() if "values" in stored else codebooks.normal_float(format.bits).to(scale)[None]
            )
        elif format.symmetric:
            zero = torch.full_like(scale, (format.max_code + 1) // 2)
        elif format.real_zero:
            zero = stored["zero"].to(torch.float32)
        else:
            zero = unpack_codes(stored["zero"], groups, format.bits).to(torch.float32)
        codes = unpack_codes(stored["codes"], shape, format.bits)
        return QuantizedWeight(codes, Grid(scale, zero, format, values), stored.get("input_scale"))


def divided_rows(quantized: QuantizedWeight, weight: Tensor, divisor: Tensor) -> QuantizedWeight:
    """Return ``quantized`` for its ``weight`` ``[O, I]`` with each row divided by ``divisor`` ``[O]``.

    The grids are divided, and the divided weight is rounded to them: scales may lose digits. Not for ``tensor`` grids.
    """
    grid = quantized.grid.with_scale(quantized.grid.scale / divisor[:, None])
    return QuantizedWeight(round_to_grid(weight / divisor[:, None], grid), grid, quantized.input_scale)


def round_nearest(weight: Tensor, format: Format) -> QuantizedWeight:
    """Round ``weight`` ``[O, I]`` to the nearest point of each group's min/max grid."""
    weight = weight.float()
    grid = fit_grid(weight, format)
    return QuantizedWeight(round_to_grid(weight, grid), grid)
