"""Which GPUs this process may use, and how a worker is given one."""

from __future__ import annotations

import os

import torch


def devices() -> list[str]:
    """One entry per GPU that this process may use, as CUDA_VISIBLE_DEVICES would name it."""
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    if mask is not None:
        return [name.strip() for name in mask.split(",") if name.strip() not in ("", "-1")]
    return [str(index) for index in range(torch.cuda.device_count())]
