"""What a result depends on besides its configuration: versions and hardware; and how much memory it took."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mmq_sweeps

PACKAGES = ("transformers", "safetensors", "tokenizers", "numpy", "pycocoevalcap", "hydra-core", "omegaconf")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Written to clear_refs, resets the peak of the resident set (proc(5)).
_RESET_PEAK = "5"


def versions() -> dict[str, str]:
    found = {"mmq_sweeps": mmq_sweeps.__version__, "python": platform.python_version()}
    # With the build (+cpu, +cu130), which the package's metadata does not have everywhere.
    found["torch"] = str(torch.__version__)
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def reset_peak_memory() -> None:
    """Peaks count from here on, where the system can reset them."""
    # Not Linux, or not allowed: the peak is then that of the process so far.
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Peak resident bytes of this process, and peak allocated bytes of its GPU where there is one."""
    peaks = {"process": _peak_resident()}
    if torch.cuda.is_available():
        peaks["gpu"] = torch.cuda.max_memory_allocated()
    return peaks


def _peak_resident() -> int:
    try:
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
