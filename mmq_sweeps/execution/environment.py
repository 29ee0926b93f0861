"""What a result depends on besides its configuration: versions and hardware; and how much memory it took."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import re
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mmq_sweeps

PACKAGES = (
    "transformers", "safetensors", "tokenizers", "sentencepiece", "numpy", "pillow", "torchvision", "pycocoevalcap",
    "hydra-core", "omegaconf",
)  # fmt: skip
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Written to clear_refs, resets the peak of the resident set (proc(5)).
_RESET_PEAK = "5"


def versions() -> dict[str, str]:
    """Of this package, of Python and of what figures depend on."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
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
    """What computes here; in a job of SLURM also which job, on which node and with which of its GPUs."""
    found = {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": list(_gpu_names()),
    }
    return found | ({"scheduler": scheduler} if (scheduler := _scheduler()) else {})


def computing(device: torch.device) -> dict[str, Any]:
    """What the last bits of a figure depend on: what computes, with how many threads and by which releases."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    releases = {package: versions()[package] for package in ("torch", "transformers")}
    return {"device": str(device), "name": name, "threads": torch.get_num_threads(), **releases}


def _scheduler() -> dict[str, Any]:
    # An array's task is known to people by the array's number and its own.
    job = "_".join(filter(None, map(os.environ.get, ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"))))
    told = {
        "job": job or os.environ.get("SLURM_JOB_ID"),
        "node": os.environ.get("SLURMD_NODENAME"),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        # How often the job had been back in the queue when it ran the cell.
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    }
    return {key: value for key, value in told.items() if value is not None} if "SLURM_JOB_ID" in os.environ else {}


@functools.cache
def _gpu_names() -> tuple[str, ...]:
    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


@functools.cache
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


# "you tried to allocate 4000 bytes", "Tried to allocate 2.00 GiB", "Unable to allocate 7.45 GiB for an array".
_ASKED = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGT]iB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory was refused: by torch, numpy, Python or the system."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch's allocator on the CPU, and some CUDA libraries, raise a plain RuntimeError.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def asked_bytes(error: BaseException) -> int | None:
    """The bytes that were refused, where ``error`` says how many."""
    found = _ASKED.search(str(error))
    return int(float(found[1]) * _UNITS[found[2]]) if found else None


def told_size(size: int) -> str:
    """``12.3 MB`` or ``4.56 GB``."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def give_back_memory() -> None:
    """Return to the GPU what torch keeps for later allocations."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _peak_resident() -> int:
    try:
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
