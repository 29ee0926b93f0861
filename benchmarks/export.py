"""Compare the export of a quantized model with the time and memory of other libraries for the same.

    OMP_NUM_THREADS=2 python benchmarks/export.py [--json] [--only SECTION ...] [--pairs 5]

    packing  codes of a weight as words, over compressed-tensors' own packer, and back
    export   BLIP-2 OPT-2.7b with a third of its blocks: memory, size, and time over llm-compressor's save of the same, for
             which --llm-compressor names an interpreter that has it (pip install llmcompressor in an environment of its own)

Ratios of packing are medians over pairs of runs, ours and theirs back to back in alternating order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

import torch  # noqa: E402
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32  # noqa: E402

from benchmarks.export_model import add_options, export_lines, measure_export  # noqa: E402
from benchmarks.sections import Section, parser_of, report  # noqa: E402
from benchmarks.timing import in_pairs  # noqa: E402
from mmq_sweeps.export.formats.bitstream import pack_rows, unpack_rows  # noqa: E402

# A projection of OPT 2.7b's attention, and of LLaMA 7b's MLP.
SHAPES = ((2560, 2560), (4096, 11008))
WIDTHS = (3, 4, 8)
TO_BE = 5


def measure_packing(options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for shape in SHAPES:
        for bits in WIDTHS:
            codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
            signed = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
            packed = pack_rows(codes, bits)
            assert torch.equal(packed, pack_to_int32(signed, bits))
            assert torch.equal(unpack_from_int32(packed, bits, codes.shape), signed)
            found = {
                "pack": in_pairs(lambda: pack_rows(codes, bits), lambda: pack_to_int32(signed, bits), options.pairs),  # noqa: B023
                "unpack": in_pairs(
                    lambda: unpack_rows(packed, shape[1], bits),  # noqa: B023
                    lambda: unpack_from_int32(packed, bits, codes.shape),  # noqa: B023
                    options.pairs,
                ),
            }
            rows.append({"shape": shape, "bits": bits, **found})
    return {"threads": torch.get_num_threads(), "rows": rows}


def packing_lines(found: Mapping[str, Any]) -> Iterable[str]:
    yield f"{found['threads']} threads; packing 3 bits is to be {TO_BE} times as fast or more"
    for row in found["rows"]:
        ways = (
            f"{way} {row[way]['ours_seconds'] * 1000:6.1f} ms, theirs {row[way]['theirs_seconds'] * 1000:7.1f} ms, "
            f"{row[way]['ratio']:5.1f} times"
            for way in ("pack", "unpack")
        )
        yield f"{row['shape'][0]} x {row['shape'][1]}, {row['bits']} bits: {';  '.join(ways)}"


SECTIONS: dict[str, Section] = {"packing": (measure_packing, packing_lines), "export": (measure_export, export_lines)}


def main() -> None:
    parser = parser_of(SECTIONS, __doc__)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of timings for every ratio (default: 5)")
    add_options(parser)
    report(SECTIONS, parser.parse_args())


if __name__ == "__main__":
    main()
