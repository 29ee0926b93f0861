"""Placement of weights: on the computing device, other GPUs, the CPU or disk.

Weights elsewhere are brought to the computing device on demand, by accelerate's hooks. This changes which models fit,
not their results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate.hooks import AlignDevicesHook
from torch import nn

from mmq_sweeps.memory import available_bytes

CPU, DISK, AUTO = "cpu", "disk", "auto"
CHOICES = "choose auto, cpu, disk or {MODULE: DEVICE, ...}, or leave it null"


def choose_device(device: str) -> torch.device:
    """Return the device; ``auto`` is CUDA if available, otherwise the CPU.

    Raises ValueError, listing the available devices, if ``device`` is absent.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    there = _devices()
    name = device if device == "cpu" or ":" in device or device == "mps" else f"{device}:0"
    if name not in there:
        choices = ["auto", *there]
        raise ValueError(
            f"model.device={device}: this machine and this build of torch have no such device; choose "
            f"{', '.join(choices[:-1])} or {choices[-1]}"
        )
    return torch.device(device)


def _devices() -> list[str]:
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())), *mps]


def locations(
    model: nn.Module, device_map: str | Mapping[str, str | int] | None, device: torch.device
) -> dict[str, str]:
    """Return the location of every module of ``model`` (which may be on meta): disjoint paths that hold all weights.

    ``cpu`` and ``disk`` apply to the blocks; everything else goes to ``device``, which computes. A mapping places its
    own modules. Raises ValueError for a path that is no module and for an absent device.
    """
    if device_map is None:
        away: dict[str, str] = {}
    elif device_map in (CPU, DISK):
        away = dict.fromkeys(_blocks(model), str(device_map))
    elif isinstance(device_map, Mapping):
        away = {str(path): _location(str(path), str(where)) for path, where in device_map.items()}
    else:
        raise ValueError(f"model.device_map={device_map}: {CHOICES}")
    paths = dict(model.named_modules())
    for path in away:
        if not path or path not in paths:
            children = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"model.device_map: {path!r} is no module of {type(model).__name__}, which has {children}")
    return _spread(model, "", away, str(device))


def _location(path: str, where: str) -> str:
    where = f"cuda:{where}" if where.isdigit() else where
    there = [*_devices(), DISK]
    if where not in there:
        raise ValueError(f"model.device_map: {path}: {where}: no such device; choose {', '.join(there)}")
    return where


def _blocks(model: nn.Module) -> list[str]:
    """Return the members of the outermost module lists, which hold the layers in every family."""
    lists: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in lists):
            lists.append(path)
    return [f"{path}.{name}" for path in lists for name, _ in model.get_submodule(path).named_children()]


def _spread(module: nn.Module, path: str, away: Mapping[str, str], default: str) -> dict[str, str]:
    here = away.get(path, default)
    if not any(other.startswith(f"{path}." if path else "") for other in away if other != path):
        return {path: here}
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    found = {_join(path, name): here for name in own}
    for name, child in module.named_children():
        found |= _spread(child, _join(path, name), away, here)
    return found


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def check_room(model: nn.Module, where: Mapping[str, str], dtype: torch.dtype, checkpoint: str) -> None:
    """Raise a ValueError with remedies if the weights of ``model``, on meta, do not fit into the free memory."""
    needs: dict[str, int] = {}
    for name, parameter in model.named_parameters():  # yields a shared parameter once
        path = next(path for path in where if path == "" or name == path or name.startswith(f"{path}."))
        needs[where[path]] = needs.get(where[path], 0) + parameter.numel() * dtype.itemsize
    for location, need in needs.items():
        room = None if location == DISK else available_bytes(torch.device(location))
        if room is not None and need > room:
            count = sum(parameter.numel() for parameter in model.parameters())
            half = "model.dtype=bfloat16, " if dtype.itemsize > 2 else ""
            raise ValueError(
                f"model.checkpoint={checkpoint}: {need / 1e9:.1f} GB of its {count:,} parameters in {str(dtype)[6:]} go to "
                f"{location}, which has {room / 1e9:.1f} GB free; choose {half}model.device_map=auto, "
                "model.device_map=disk, another model.device, or free memory"
            )


def read_max_memory(given: Mapping[str, str | int] | None, device: str) -> dict[int | str, str | int] | None:
    """Convert ``{"0": "20GB", "cpu": "8GB"}`` to accelerate's form; None with ``model.device=cpu`` excludes GPUs."""
    if given is None:
        return {CPU: available_bytes(torch.device(CPU)) or 0} if device == CPU else None
    limits: dict[int | str, str | int] = {}
    for place, limit in given.items():
        if str(place) != CPU and not str(place).isdigit():
            raise ValueError(f"model.max_memory: {place}: give cpu, or the number of a GPU")
        limits[CPU if str(place) == CPU else int(place)] = limit
    return limits


def computing_device(model: nn.Module) -> torch.device:
    """Return the device on which ``model`` takes its inputs."""
    devices = [hook.execution_device for hook in _align_hooks(model) if hook.execution_device is not None]
    return torch.device(devices[0]) if devices else next(model.parameters()).device


@contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Hold ``module``'s own weights on the computing device, where accelerate would bring them for each call."""
    brought = []
    try:
        for hook in offloading_hooks(module):
            brought.append(hook)
            hook.pre_forward(module)
            hook.offload = False
        yield
    finally:
        for hook in brought:
            hook.offload = True
            hook.post_forward(module, None)


def offloading_hooks(module: nn.Module) -> list[AlignDevicesHook]:
    """Return those of ``module``'s hooks that bring its own weights for each call."""
    return [hook for hook in _align_hooks(module) if hook.offload]


def _align_hooks(module: nn.Module) -> list[AlignDevicesHook]:
    hook = getattr(module, "_hf_hook", None)
    return [one for one in getattr(hook, "hooks", [hook]) if isinstance(one, AlignDevicesHook)]
