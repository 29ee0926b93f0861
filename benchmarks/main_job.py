"""Time the main job: eight cells on the embedded model, the same command again, and the start-up of the command.

    python benchmarks/main_job.py [--json] [--skip-separate]

The competitor runs the same eight cells without sharing: each in its own process with its own store, as separate
cluster jobs would.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.against import CHECKOUT, spent

METHODS, BITS = ("gptq", "awq"), (2, 3, 4, 8)


def seconds(*arguments: str) -> float:
    """Return the wall seconds of ``python -m mmq_sweeps`` with ``arguments``."""
    return spent(CHECKOUT, ["-m", "mmq_sweeps", *arguments])[1]


def median_start(*flags: str, runs: int = 5) -> float:
    return median(seconds(*flags) for _ in range(runs))


def measure(separate: bool) -> dict[str, float]:
    sweep = ["-m", f"method={','.join(METHODS)}", f"bits={','.join(map(str, BITS))}"]
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "first_run_seconds": seconds(*sweep, f"store.dir={folder}/shared"),
            "second_run_seconds": seconds(*sweep, f"store.dir={folder}/shared"),
            "help_seconds": median_start("--help"),
            "cfg_seconds": median_start("--cfg", "job"),
        }
        if separate:
            found["separate_seconds"] = sum(
                seconds(f"method={method}", f"bits={bits}", f"store.dir={folder}/{method}{bits}")
                for method in METHODS
                for bits in BITS
            )
            found["ratio_to_separate"] = found["separate_seconds"] / found["first_run_seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--skip-separate", action="store_true", help="leave the competitor out (minutes)")
    arguments = parser.parse_args()
    found = measure(separate=not arguments.skip_separate)
    if arguments.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    lines = [
        f"eight cells and their baseline, first run  {found['first_run_seconds']:7.1f} s  (to be under 120 s)",
        f"the same command again                     {found['second_run_seconds']:7.1f} s  (to be under 15 s)",
        f"--help                                     {found['help_seconds']:7.2f} s  (to be under 2 s)",
        f"--cfg job                                  {found['cfg_seconds']:7.2f} s  (to be under 2 s)",
    ]
    if "separate_seconds" in found:
        lines.append(
            f"one process and one store a cell           {found['separate_seconds']:7.1f} s, "
            f"{found['ratio_to_separate']:.1f} times the sweep's"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
