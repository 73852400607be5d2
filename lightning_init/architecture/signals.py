"""Which part of a tensor is read, and its norm.

Norms accumulate in float32 or better whatever the tensor's own type is, so half-precision values
neither overflow nor vanish.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_init.architecture.sharded import is_sharded, norm_of

LEAST = 16  # rows; a monitored step reads the first 1/16 of the batch, at least that many
_ENOUGH = 2**15  # values that a monitored step reads of an output, if there are rows enough
_UNIT_ROWS = 256  # samples that a statement about single units rests on, in an audit
_FEWER = 64  # and at a monitored step


def spread(mean: float, rms: float) -> float:
    """Standard deviation from mean and root mean square.

    Example:
        >>> spread(3.0, 5.0)
        4.0
    """
    return math.sqrt(max(rms**2 - mean**2, 0.0)) if math.isfinite(rms) else rms


def leading(value: Tensor, channels: bool, full: bool) -> Tensor:
    """The part of an output that is read, a view with all its units.

    All of it, or the first sixteenth of the batch and at least 16 rows; of these, positions at
    even distances so that about 32,768 values remain. Steps through units would meet the same
    ones in every row.

    Args:
        value: Shape (rows, units), (rows, positions..., units) or (rows, channels, positions...).
        channels: Whether it is the last.
        full: Whether all of it is read.

    Example:
        >>> leading(torch.zeros(640, 2), channels=False, full=False).shape
        torch.Size([40, 2])
        >>> leading(torch.zeros(32, 128, 256), channels=False, full=False).shape
        torch.Size([16, 8, 256])
    """
    if full or value.ndim < 2 or not len(value):
        return value
    width = value.numel() // len(value)
    value = value[: max(LEAST, min(len(value) // LEAST, _ENOUGH // width))]
    for dim in range(2, value.ndim) if channels else range(1, value.ndim - 1):
        step = min(value.shape[dim], math.ceil(value.numel() / _ENOUGH))
        if step > 1:
            value = value[(slice(None),) * dim + (slice(None, None, step),)]
    return value


def rows_of_units(value: Tensor, full: bool) -> Tensor:
    """A (rows, units) matrix of about 256 rows, or 64, evenly spaced in every sample."""
    most = _UNIT_ROWS if full else _FEWER
    if value.ndim < 3:
        return value[:most].reshape(-1, value.shape[-1])
    value = value.flatten(1, -2)
    inside = max(1, most // len(value))
    thin = value[:most, :: math.ceil(value.shape[1] / inside)]
    return thin.reshape(-1, value.shape[-1])


def norm(value: Tensor) -> Tensor:
    """Euclidean norm, summed in float32 or better."""
    found: Tensor = torch.linalg.vector_norm(value, dtype=wide(value))
    return found


def wide(value: Tensor) -> torch.dtype:
    """The type in which a tensor's values are summed."""
    return torch.float64 if value.dtype is torch.float64 else torch.float32


def euclidean(value: Tensor) -> Tensor:
    """Euclidean norm as float32, of sparse and of complex tensors, too."""
    if is_sharded(value):
        return norm_of(value)
    dense = (value.coalesce().values() if value.is_sparse else value).detach()
    dense = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
    return norm(dense).float()


def norms(values: Sequence[Tensor]) -> list[Tensor]:
    """The Euclidean norm of each tensor, those of one kind and device in one call.

    Example:
        >>> [float(norm) for norm in norms([torch.tensor([3.0, 4.0]), torch.tensor([2.0])])]
        [5.0, 2.0]
    """
    found: dict[int, Tensor] = {}
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, value in enumerate(values):
        if value.layout is torch.strided and value.is_floating_point() and not is_sharded(value):
            kinds.setdefault((value.device, value.dtype), []).append(place)
        else:
            found[place] = euclidean(value)
    for places in kinds.values():
        group = [values[place].detach() for place in places]
        found |= zip(places, torch._foreach_norm(group, 2, dtype=wide(group[0])), strict=True)
    return [found[place] for place in range(len(values))]


def means(values: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each tensor, those of one small shape in one call.

    Example:
        >>> [float(mean) for mean in means([torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])])]
        [3.5, 1.5]
    """
    found: dict[int, Tensor] = {}
    shapes: dict[tuple[torch.device, torch.dtype, torch.Size], list[int]] = {}
    for place, value in enumerate(values):
        if value.numel() > _ENOUGH or value.layout is not torch.strided:
            found[place] = value.mean(dtype=wide(value))
        else:
            shapes.setdefault((value.device, value.dtype, value.shape), []).append(place)
    for places in shapes.values():
        rows = torch.stack([values[place] for place in places]).reshape(len(places), -1)
        found |= zip(places, rows.mean(1, dtype=wide(rows)).unbind(), strict=True)
    return [found[place] for place in range(len(values))]
