"""Units that are alike and stay so: equal weights and equal gradients.

Each unit becomes two random numbers, projections of its weights and gradients; equal units get
equal numbers, and a sort brings them together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_init.architecture.ledger import Ledger

_ALIKE = 1e-6


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
    both = torch.cat([_scaled(weight, axis), _scaled(grad, axis)], 1)
    generator = torch.Generator().manual_seed(0)
    along = torch.randn(both.shape[1], 2, generator=generator, dtype=torch.float64)
    first, second = (both @ (along / both.shape[1] ** 0.5).to(both.device)).unbind(1)
    order = first.argsort()
    same = first[order].diff().abs() <= _ALIKE
    same &= second[order].diff().abs() <= _ALIKE
    alike = torch.zeros(len(order), dtype=torch.bool, device=weight.device)
    alike[1:] |= same
    alike[:-1] |= same
    return ledger.note(alike.mean(dtype=torch.float32))


def _scaled(value: Tensor, axis: int) -> Tensor:
    """Units as rows, of root mean square 1 all together; zeros stay zeros."""
    rows = value.movedim(axis, 0).flatten(1).double()
    size = torch.linalg.vector_norm(rows) / rows.numel() ** 0.5
    return torch.where(size == 0, rows, rows / size)
