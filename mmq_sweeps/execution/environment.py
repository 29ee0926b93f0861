"""Versions and hardware, on which a result depends besides its configuration."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Any

import torch

import mmq_sweeps
from mmq_sweeps.reporting.versions import installed

PACKAGES = (
    "transformers", "safetensors", "tokenizers", "sentencepiece", "numpy", "pillow", "torchvision", "pycocoevalcap",
    "hydra-core", "omegaconf",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of every package that figures depend on."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"mmq_sweeps": mmq_sweeps.__version__, "python": platform.python_version()}
    # With the build (+cpu, +cu130), which the package's metadata does not have everywhere.
    found["torch"] = str(torch.__version__)
    return found | {package: installed(package) for package in PACKAGES}


def hardware() -> dict[str, Any]:
    """Describe this machine, and in a SLURM job the job, its node and its GPUs."""
    found = {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": list(_gpu_names()),
    }
    return found | ({"scheduler": scheduler} if (scheduler := _scheduler()) else {})


def computing(device: torch.device) -> dict[str, Any]:
    """Return everything that the last bits of a figure depend on: device, threads and releases."""
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
