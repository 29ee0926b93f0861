"""Memory: how much is free, how much a process has used, and caches that stay within a share of it.

A container or a job may allow a process less than the machine has; all limits are looked at.
"""

from __future__ import annotations

import contextlib
import errno
import platform
import re
import resource
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import TypeVar

import torch

Value = TypeVar("Value")
# The share of the free memory that one cache may take.
CACHE_SHARE = 8
# Used if the system does not report its free memory.
UNKNOWN_BYTES = 1 << 30

_MEMINFO, _CGROUP, _CGROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Resets the peak of the resident set when written to clear_refs (proc(5)).
_RESET_PEAK = "5"


def available_bytes(device: torch.device) -> int | None:
    """Return the bytes that can be allocated on ``device`` (CPU or CUDA) without swapping; None if unknown."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        # Torch can also allocate from the memory that it has reserved but does not use.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    known = [
        room for room in (_kilobytes(_MEMINFO, "MemAvailable:"), _cgroup_room(), _address_room()) if room is not None
    ]
    return min(known, default=None)


def _kilobytes(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def _cgroup_room() -> int | None:
    """Return the bytes left under the tightest memory limit of this process's cgroups (v2, and v1 in containers)."""
    rooms = []
    for folder in _cgroup_folders():
        for limit_file, usage_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            try:
                limit, used = (int((folder / name).read_text()) for name in (limit_file, usage_file))
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such file, or "max"
                continue
            # The page cache counts as used, but its inactive part is reclaimed when memory is needed.
            rooms.append(max(0, limit - used + int(stat.get("inactive_file", 0))))
    return min(rooms, default=None)


def _cgroup_folders() -> list[Path]:
    try:
        lines = _CGROUP.read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    unified = _CGROUPS / own
    inside = [folder for folder in (unified, *unified.parents) if folder.is_relative_to(_CGROUPS)]
    return [*inside, _CGROUPS / "memory"]


def _address_room() -> int | None:
    """Return the bytes left under ``ulimit -v``."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _kilobytes(_STATUS, "VmSize:")
    return None if limit == resource.RLIM_INFINITY or used is None else max(0, limit - used)


def cache_bytes() -> int:
    """Return the bytes that one cache of this process may hold."""
    free = available_bytes(torch.device("cpu"))
    return UNKNOWN_BYTES if free is None else free // CACHE_SHARE


def keep(cache: MutableMapping[str, Value], key: str, value: Value) -> None:
    """Put ``value`` into ``cache``; a value larger than the whole cache is left out."""
    cache.pop(key, None)
    with contextlib.suppress(ValueError):
        cache[key] = value


class Computed(Mapping[str, Value]):
    """Values by ``names``, each computed whenever it is asked for, so that they are never all in memory."""

    def __init__(self, names: Collection[str], compute: Callable[[str], Value]) -> None:
        self._names, self._compute = names, compute

    def __getitem__(self, name: str) -> Value:
        return self._compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def reset_peak_memory() -> None:
    """Start counting peaks anew, if the system allows it."""
    # Not Linux, or not permitted: the peak stays that of the whole process.
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Return the peak resident bytes of this process and, with a GPU, its peak allocated bytes."""
    peaks = {"process": _peak_resident()}
    if torch.cuda.is_available():
        peaks["gpu"] = torch.cuda.max_memory_allocated()
    return peaks


# "you tried to allocate 4000 bytes", "Tried to allocate 2.00 GiB", "Unable to allocate 7.45 GiB for an array".
_ASKED = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGT]iB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def ran_out_of_memory(error: BaseException) -> bool:
    """Return True if torch, numpy, Python or the system refused memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch's allocator on the CPU, and some CUDA libraries, raise a plain RuntimeError.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def asked_bytes(error: BaseException) -> int | None:
    """Return the size of the refused allocation, or None if ``error`` does not tell."""
    found = _ASKED.search(str(error))
    return int(float(found[1]) * _UNITS[found[2]]) if found else None


def format_bytes(size: int) -> str:
    """Format a size: ``12.3 MB`` or ``4.56 GB``."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def give_back_memory() -> None:
    """Release memory that torch holds on the GPU for later allocations."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _peak_resident() -> int:
    if (told := _kilobytes(_STATUS, "VmHWM:")) is not None:
        return told
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
