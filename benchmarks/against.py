"""Measure commands with this checkout's code and with that of an earlier commit, in turns."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
# The commit that ratios compare with, unless another is named.
BEFORE = "0670394"


@contextmanager
def checkout(commit: str = BEFORE) -> Iterator[Path]:
    """Yield a temporary folder with the code of ``commit``; the commit must be in this repository."""
    git = ["git", "-C", str(CHECKOUT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, commit)
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def seconds(work: Callable[[], object]) -> float:
    """Call ``work`` and return its wall seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def spent(
    tree: Path, arguments: Sequence[str], folder: Path | None = None, **environment: str
) -> tuple[float, float, str]:
    """Run Python with the code of ``tree``; return processor seconds of all its processes, seconds, and its output.

    It runs in ``folder``, by default that of the code.
    """
    before, began = _processor(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder or tree, env={**os.environ, "PYTHONPATH": str(tree), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)[:500]}\n{done.stderr}")
    return _processor() - before, time.perf_counter() - began, done.stdout


def _processor() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compared(run: Callable[[Path], tuple[float, float]], other: Path | None, pairs: int) -> dict[str, Any]:
    """Measure ``run(tree)``, processor seconds and seconds, in turns; the ratio is the median of the pairs' ratios."""
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for number in range(pairs):
        ours.append(run(CHECKOUT))
        told = f"pair {number + 1} of {pairs}: {ours[-1][0]:.1f} s of processor time"
        if other is not None:
            theirs.append(run(other))
            told += f", before {theirs[-1][0]:.1f} s"
        sys.stderr.write(told + "\n")
    found = {"processor_seconds": _median(ours, 0), "seconds": _median(ours, 1)}
    if theirs:
        found |= {"before_processor_seconds": _median(theirs, 0), "before_seconds": _median(theirs, 1)}
        found["ratio"] = statistics.median(there[0] / here[0] for here, there in zip(ours, theirs, strict=True))
    return found


def _median(found: Sequence[tuple[float, float]], place: int) -> float:
    return statistics.median(one[place] for one in found)


def line(name: str, found: dict[str, Any]) -> str:
    """Format the result of ``compared``."""
    text = f"{name}: {found['processor_seconds']:.1f} s of processor time in {found['seconds']:.1f} s"
    if "ratio" not in found:
        return text
    before = f"before {found['before_processor_seconds']:.1f} s in {found['before_seconds']:.1f} s"
    return f"{text}; {before}: {found['ratio']:.1f} times"
