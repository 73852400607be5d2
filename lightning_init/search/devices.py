"""Which GPUs this process may use, how a worker is given one, and how many threads it gets."""

from __future__ import annotations

import os

import torch

_CPU_ONLY = ("cpu", "mps", "tpu", "hpu")


def visible_devices(accelerator: str = "auto") -> list[str]:
    """One entry per GPU that this process may use, as CUDA_VISIBLE_DEVICES would name it.

    Args:
        accelerator: The Trainer's; the CPU, among others, needs no GPU.

    Returns:
        Indices, UUIDs or MIG instances; empty if there are none to use.
    """
    count = 0 if accelerator in _CPU_ONLY else torch.cuda.device_count()
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not count:
        return []
    if mask is None:
        return [str(index) for index in range(count)]
    names = named_in(mask)
    # A process sees one MIG instance at most, however many it may choose from.
    return names if names and names[0].startswith("MIG-") else names[:count]


def named_in(mask: str) -> list[str]:
    """The devices of a CUDA_VISIBLE_DEVICES, read as CUDA does: up to the first that cannot be.

    Example:
        >>> named_in("2, 0,-1,1")
        ['2', '0']
        >>> named_in("GPU-8a,GPU-3c")
        ['GPU-8a', 'GPU-3c']
    """
    found: list[str] = []
    for name in (part.strip() for part in mask.split(",")):
        kind = _kind(name)
        if not (kind or name.isdigit()) or (found and kind != _kind(found[0])):
            break
        if name in found:
            return []  # named twice, CUDA shows none
        found.append(name)
    return found


def _kind(name: str) -> str:
    return next((prefix for prefix in ("GPU-", "MIG-") if name.startswith(prefix)), "")


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_each(workers: int) -> int:
    """Threads of each worker: the cores divided, unless OMP_NUM_THREADS says otherwise.

    Args:
        workers: How many, at least 1.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else max(1, cores() // workers)
