"""Where the matrices lie inside a tensor: blocks, the dimension of the outputs, kernel taps.

Schemes that speak of a matrix (out, in) place it through this into convolutions (at the centre
tap), transposed convolutions, layers that store (in, out), stacked gates, groups and experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_init.architecture.params import ParamInfo


@dataclass(frozen=True, slots=True)
class Layout:
    """Matrices (rows: outputs, columns: inputs) inside a tensor.

    Args:
        shape: Of the tensor, at least 2 dimensions.
        blocks: Independent matrices.
        axis: The dimension of output features.
        taps: Trailing dimensions of a convolution's kernel; the matrix lies at its centre tap,
            `size // 2` along each, and the other taps are 0.
        swapped: Whether a kernel is stored (in, out, ...), as in a transposed convolution.

    Example:
        >>> kernel = Layout((8, 4, 3), blocks=2, taps=1)
        >>> kernel.rows, kernel.columns
        (4, 4)
        >>> kernel.place(torch.eye(4).expand(2, 4, 4))[:4, :, 1].equal(torch.eye(4))
        True
    """

    shape: tuple[int, ...]
    blocks: int = 1
    axis: int = 0
    taps: int = 0
    swapped: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) - self.taps < 2:
            raise ValueError(f"a matrix needs 2 or more dimensions, but got shape {self.shape}")
        if self.blocks < 1 or self.shape[self._stacked] % self.blocks:
            raise ValueError(
                f"`blocks` must divide the dimension along which they lie, but got "
                f"blocks={self.blocks} for shape {self.shape}"
            )

    @property
    def _stacked(self) -> int:
        """The dimension along which the blocks lie."""
        return self.axis if len(self.shape) == 2 else 0

    @property
    def rows(self) -> int:
        """Outputs of one block."""
        if self.taps:
            return self.shape[1] if self.swapped else self.shape[0] // self.blocks
        if self.axis and len(self.shape) > 2:
            return self.shape[self.axis]
        return self.shape[self.axis] // self.blocks

    @property
    def columns(self) -> int:
        """Inputs of one block."""
        size = math.prod(self.shape[: len(self.shape) - self.taps])
        return size // max(self.blocks * self.rows, 1)

    @property
    def density(self) -> float:
        """The share of the tensor that its matrices take up."""
        return 1 / math.prod(self.shape[len(self.shape) - self.taps :])

    def place(self, matrices: Tensor) -> Tensor:
        """The tensor that holds matrices of shape (blocks, rows, columns)."""
        if self.taps:
            kernel = torch.zeros(self.shape)
            inner = matrices.mT if self.swapped else matrices
            centre = 0
            for size in self.shape[-self.taps :]:
                centre = centre * size + size // 2
            kernel.flatten(-self.taps)[..., centre] = inner.reshape(self.shape[: -self.taps])
            return kernel
        if not self.axis:
            return matrices.reshape(self.shape)
        if len(self.shape) == 2:
            return matrices.flatten(0, 1).T.contiguous()
        others = [size for dim, size in enumerate(self.shape) if dim != self.axis]
        lead = 1 if self.blocks > 1 else 0
        # (blocks, rows, the other dims): the rows go where the outputs lie
        spread = matrices.reshape(*others[:lead], self.rows, *others[lead:])
        return spread.movedim(lead, self.axis).contiguous()


def is_kernel(info: ParamInfo) -> bool:
    """Whether a tensor is the kernel of a convolution, taps last.

    A convolution that is no module of torch's is known by its 4 or more dimensions, all of whose
    inputs are summed.

    Example:
        >>> is_kernel(ParamInfo(("w",), (8, 4, 3), Role.WEIGHT, layer="Conv1d"))
        True
        >>> is_kernel(ParamInfo(("w",), (4, 12), Role.WEIGHT, layer="Conv1D"))
        False
    """
    if len(info.shape) < 3:
        return False
    if "Conv" in info.layer and "Conv1D" not in info.layer:
        return True
    summed = info.fan_in == math.prod(info.shape[1:])
    return info.layer != "Bilinear" and len(info.shape) > 3 and summed


def layout_of(info: ParamInfo) -> Layout:
    """Where the matrices of a described tensor lie.

    Example:
        >>> layout_of(ParamInfo(("w",), (6, 4, 3, 3), Role.WEIGHT, layer="ConvTranspose2d")).rows
        4
    """
    taps = len(info.shape) - 2 if is_kernel(info) else 0
    swapped = taps > 0 and "ConvTranspose" in info.layer
    return Layout(info.shape, info.blocks, 0 if taps else info.axis, taps, swapped)
