"""Distributions of whole matrices, whose entries depend on each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Generator, Tensor

from lightning_init.strategies.distributions import check_std, reason_field
from lightning_init.strategies.layout import Layout


@dataclass(frozen=True, slots=True)
class Orthogonal:
    """`gain` times a matrix with orthonormal rows or columns, Haar distributed.

    A tensor is seen as `blocks` matrices stacked along dim 0, the other dims flattened; each is
    drawn on its own. Where the outputs lie along another dim, the blocks are the leading ones. The
    QR decomposition runs on one thread, since its last bits depend on the number of threads.

    Args:
        shape: Shape of the tensor; at least 2 dimensions.
        gain: Every singular value, at least 0.
        blocks: Independent matrices along dim 0; divides `shape[0]`.
        axis: The dimension of output features.

    References:
        Saxe, McClelland & Ganguli (2013), https://arxiv.org/abs/1312.6120;
        Mezzadri (2007), https://arxiv.org/abs/math-ph/0609050 (signs that make it Haar).

    Example:
        >>> w = Orthogonal((4, 8), gain=2.0).sample((4, 8), torch.Generator().manual_seed(0))
        >>> bool(torch.allclose(w @ w.T, 4 * torch.eye(4), atol=1e-5))
        True
    """

    shape: tuple[int, ...]
    gain: float = 1.0
    blocks: int = 1
    axis: int = 0
    reason: str = reason_field()

    def __post_init__(self) -> None:
        if len(self.shape) < 2:
            raise ValueError(
                f"an orthogonal tensor needs 2 or more dimensions, but got {self.shape}"
            )
        if self.blocks < 1 or self.shape[0] % self.blocks:
            raise ValueError(
                f"`blocks` must divide the first dimension, but got blocks={self.blocks} "
                f"for shape {self.shape}"
            )
        check_std(self.gain, "gain")

    @property
    def _matrix(self) -> tuple[int, int]:
        if self.axis and len(self.shape) > 2:
            rows = self.shape[self.axis]
            return rows, math.prod(self.shape) // self.blocks // max(rows, 1)
        return self.shape[0] // self.blocks, math.prod(self.shape[1:])

    @property
    def std(self) -> float:
        """Root mean square of the entries, gain / sqrt(max(rows, columns))."""
        return self.gain / math.sqrt(max(*self._matrix, 1))

    @property
    def mean(self) -> float:
        """0."""
        return 0.0

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw a float32 tensor on the CPU."""
        if tuple(shape) != self.shape:
            raise ValueError(f"drawn for shape {self.shape}, but got shape {tuple(shape)}")
        rows, columns = self._matrix
        drawn = _haars(rows, columns, self.blocks, generator).flatten(0, 1).mul_(self.gain)
        if not self.axis or len(shape) < 3:
            return drawn.reshape(shape)
        # (blocks, rows, the other dims): the rows go where the outputs lie
        others = [size for dim, size in enumerate(shape) if dim != self.axis]
        lead = 1 if self.blocks > 1 else 0
        drawn = drawn.reshape(*others[:lead], shape[self.axis], *others[lead:])
        return drawn.movedim(lead, self.axis).contiguous()

    def scaled(self, factor: float) -> Self:
        """The same with its gain multiplied by `factor`."""
        return replace(self, gain=self.gain * factor)

    def __str__(self) -> str:
        blocks = f" in each of {self.blocks} blocks" if self.blocks > 1 else ""
        return f"orthogonal, gain {self.gain:.4g}{blocks}"


@dataclass(frozen=True, slots=True)
class DeltaOrthogonal:
    """`gain` times a matrix with orthonormal rows or columns at a kernel's centre tap, else 0.

    As a convolution it is an isometry times `gain` where it has as many outputs as inputs or more
    (with circular padding and stride 1); with fewer, it keeps as many directions as it has
    outputs. The centre of an even kernel is size // 2: another tap would only shift the result.

    Args:
        layout: Where the kernel's matrices lie; groups are matrices of their own.
        gain: Every singular value, at least 0.

    References:
        Xiao et al. (2018), algorithm 2, https://arxiv.org/abs/1806.05393

    Example:
        >>> kernel = DeltaOrthogonal(Layout((4, 4, 3), taps=1)).sample((4, 4, 3), torch.Generator())
        >>> kernel[:, :, 0].abs().max(), kernel[:, :, 1].norm()
        (tensor(0.), tensor(2.))
    """

    layout: Layout
    gain: float = 1.0
    reason: str = reason_field()

    def __post_init__(self) -> None:
        check_std(self.gain, "gain")

    @property
    def std(self) -> float:
        """Root mean square of all entries, the zeros included."""
        longer = max(self.layout.rows, self.layout.columns, 1)
        return self.gain * math.sqrt(self.layout.density / longer)

    @property
    def mean(self) -> float:
        """0."""
        return 0.0

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw a float32 tensor on the CPU."""
        if tuple(shape) != self.layout.shape:
            raise ValueError(f"drawn for shape {self.layout.shape}, but got shape {tuple(shape)}")
        rows, columns = self.layout.rows, self.layout.columns
        drawn = _haars(rows, columns, self.layout.blocks, generator).mul_(self.gain)
        return self.layout.place(drawn)

    def scaled(self, factor: float) -> Self:
        """The same with its gain multiplied by `factor`."""
        return replace(self, gain=self.gain * factor)

    def __str__(self) -> str:
        blocks = f" in each of {self.layout.blocks} groups" if self.layout.blocks > 1 else ""
        return f"delta-orthogonal, gain {self.gain:.4g}{blocks}"


def _haars(rows: int, columns: int, count: int, generator: Generator) -> Tensor:
    """Matrices (count, rows, columns), one after the other, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return torch.stack([_haar(rows, columns, generator) for _ in range(count)])
    finally:
        torch.set_num_threads(threads)


def _haar(rows: int, columns: int, generator: Generator) -> Tensor:
    draw = torch.empty(max(rows, columns), min(rows, columns)).normal_(generator=generator)
    q, r = torch.linalg.qr(draw)
    diagonal = r.diagonal()
    q *= torch.where(diagonal < 0, -1.0, 1.0)
    haar: Tensor = q if rows >= columns else q.T
    return haar
