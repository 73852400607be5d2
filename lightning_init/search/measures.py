"""What is measured of trained weights: how far they went, and how they bear being pruned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.analyze import analyze
from lightning_init.architecture.params import Architecture, Role

_MATRICES = (Role.WEIGHT, Role.RECURRENT)


class Distance:
    """How far the trainable weights travel: ||theta - theta_0|| / ||theta_0||.

    Args:
        module: The model as it starts.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> travelled = Distance(layer)
        >>> layer.weight.data.mul_(1.5).shape
        torch.Size([2, 2])
        >>> round(travelled(layer), 6)
        0.5
    """

    def __init__(self, module: nn.Module) -> None:
        self._start = {
            name: parameter.detach().clone()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and not is_lazy(parameter) and not parameter.is_meta
        }

    def __call__(self, module: nn.Module) -> float:
        """The distance by now; infinite from a start of zeros."""
        now = dict(module.named_parameters())
        moved = start = 0.0
        for name, before in self._start.items():
            value = now[name].detach()
            start += float(before.double().square().sum())
            moved += float((value.double() - before.to(value.device).double()).square().sum())
        if not start:
            return 0.0 if not moved else math.inf
        return math.sqrt(moved / start)


@contextmanager
def pruned(module: nn.Module, sparsity: float, known: Architecture | None = None) -> Iterator[None]:
    """Set the smallest entries of all matrices together to zero for a while.

    Biases, norms, embeddings and scales of branches are left alone.

    Args:
        module: The model.
        sparsity: The share of the entries, above 0 and below 1.
        known: What the parameters are, where that has been found out.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.1, -2.0], [3.0, -0.2]]))
        >>> with pruned(layer, 0.5):
        ...     print(layer.weight.tolist())
        [[0.0, -2.0], [3.0, 0.0]]
        >>> layer.weight.tolist()[0][1], layer.weight.tolist()[1][1] != 0
        (-2.0, True)
    """
    matrices = _matrices(module, known)
    kept = [matrix.detach().clone() for matrix in matrices]
    count = round(sparsity * sum(matrix.numel() for matrix in matrices))
    with torch.no_grad():
        if count:
            sizes = torch.cat([m.detach().abs().flatten().float().cpu() for m in matrices])
            mask = torch.ones_like(sizes)
            mask[torch.topk(sizes, count, largest=False).indices] = 0
            parts = torch.split(mask, [matrix.numel() for matrix in matrices])
            for matrix, part in zip(matrices, parts, strict=True):
                matrix.masked_fill_(part.view(matrix.shape).to(matrix.device) == 0, 0.0)
    try:
        yield
    finally:
        with torch.no_grad():
            for matrix, value in zip(matrices, kept, strict=True):
                matrix.copy_(value)


def _matrices(module: nn.Module, known: Architecture | None) -> list[Tensor]:
    infos = analyze(module) if known is None else known
    names = {name for info in infos if info.role in _MATRICES for name in info.names}
    return [p for name, p in module.named_parameters() if name in names and p.ndim > 1]
