"""Units that are alike and stay so: equal weights and equal gradients.

Each unit becomes two random numbers, projections of its weights and gradients; equal units get
equal numbers but for rounding, and a sort brings them together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_init.architecture.ledger import Ledger
from lightning_init.architecture.signals import norm, wide

_ALIKE = 1e-5  # single precision, summed over the inputs of a unit


def twins(ledger: Ledger, weight: Tensor, grad: Tensor, axis: int = 0) -> int | None:
    """Place of the fraction of units whose weights and gradients are those of another unit.

    Args:
        ledger: Takes the number.
        weight: The matrix.
        grad: Its gradient, of the same shape.
        axis: The dimension along which the units lie.

    Example:
        >>> ledger, w = Ledger(), torch.tensor([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [3.0, 1.0]])
        >>> place = twins(ledger, w, torch.zeros(4, 2))
        >>> ledger.read()[place]
        0.5
    """
    if grad.layout is not torch.strided or weight.shape[axis] < 2 or weight.shape != grad.shape:
        return None
    found = _projected(weight, axis, 0) + _projected(grad, axis, 1)
    first, second = found.unbind(1)
    order = first.argsort()
    same = first[order].diff().abs() <= _ALIKE
    same &= second[order].diff().abs() <= _ALIKE
    alike = torch.zeros(len(order), dtype=torch.bool, device=weight.device)
    alike[1:] |= same
    alike[:-1] |= same
    return ledger.note(alike.mean(dtype=torch.float32))


def _projected(value: Tensor, axis: int, seed: int) -> Tensor:
    """Two projections of each unit, about 1 in size all together; those of zeros are 0."""
    rows = value.movedim(axis, 0).flatten(1)
    rows = rows.to(wide(rows))
    generator = torch.Generator().manual_seed(seed)
    along = torch.randn(rows.shape[1], 2, generator=generator).to(rows)
    size = norm(rows) / rows.shape[0] ** 0.5
    projected: Tensor = (rows @ along) / size.clamp_min(torch.finfo(rows.dtype).tiny)
    return projected
