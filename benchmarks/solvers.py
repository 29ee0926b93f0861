"""Compare our solvers with the published libraries' own: equality of results, and speed.

    OMP_NUM_THREADS=2 python benchmarks/solvers.py [--json] [--only SECTION ...] [--pairs 5]

Needs the extras `auto-gptq` and `autoawq`, except for the sections `peers`, `awq_peers` and `awq_widths_peers`, which make
environments of their own. Ratios are medians over pairs of runs, ours and theirs back to back in
alternating order. `--help` lists the sections; without `--only` all of them run, in that order. Progress is printed to
stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

import torch  # noqa: E402

from benchmarks import solvers_awq, solvers_beyond, solvers_codebooks, solvers_gptq, solvers_parity, solvers_peers  # noqa: E402

OF = (solvers_parity, solvers_gptq, solvers_awq, solvers_beyond, solvers_codebooks, solvers_peers)
SECTIONS = {name: section for module in OF for name, section in module.SECTIONS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION",
                        help=f"of {', '.join(SECTIONS)}")  # fmt: skip
    parser.add_argument("--pairs", type=int, default=5, help="pairs of timings for every ratio (default: 5)")
    parser.add_argument(
        "--divide", type=int, default=1, help="of the sections with peers: divide all sizes by this (default: 1)"
    )
    options = parser.parse_args()
    solvers_peers.divisor = options.divide
    found = {}
    with torch.no_grad():
        for name in options.only:
            found[name] = SECTIONS[name].measure(options.pairs)
            if not options.json:
                sys.stdout.write("\n".join([f"{name} ({torch.get_num_threads()} threads)",
                                            *SECTIONS[name].lines(found[name]), "", ""]))  # fmt: skip
                sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps({"threads": torch.get_num_threads(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
