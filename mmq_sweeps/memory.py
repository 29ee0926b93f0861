"""Measure available memory: of a GPU, or of this process, which a container or job may limit further than the machine."""

from __future__ import annotations

from pathlib import Path

import torch

_MEMINFO, _CGROUP, _CGROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_STATUS = Path("/proc/self/status")


def available_bytes(device: torch.device) -> int | None:
    """Return the bytes that can be allocated on ``device`` (CPU or CUDA) without swapping; None if unknown."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        # Torch can also allocate from the memory that it has reserved but does not use.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    known = [room for room in (_machine_room(), _cgroup_room(), _address_room()) if room is not None]
    return min(known, default=None)


def _machine_room() -> int | None:
    return _kilobytes(_MEMINFO, "MemAvailable:")


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
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _kilobytes(_STATUS, "VmSize:")
    return None if limit == resource.RLIM_INFINITY or used is None else max(0, limit - used)
