"""Matrices without randomness: the identity, the identity repeated, rows of a Hadamard matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, Self

import torch
from torch import Generator, Tensor

from lightning_init.strategies.distributions import check_std, reason_field
from lightning_init.strategies.layout import Layout

Kind = Literal["identity", "repeated identity", "hadamard"]
_CHUNK = 1 << 20  # entries of a Hadamard matrix that are computed at once


@dataclass(frozen=True, slots=True)
class Pattern:
    """`gain` times a fixed matrix in each block of a tensor; the same for every seed.

    - `identity`: 1 where i = j, else 0.
    - `repeated identity`: 1 where i = j modulo the smaller of rows and columns, else 0.
    - `hadamard`: (-1)^popcount(i AND j), Sylvester's Hadamard matrix cut to the block. It is
      computed row by row, never as a whole square.

    Args:
        layout: Where the matrices lie.
        kind: Which matrix.
        gain: A factor, at least 0.

    Example:
        >>> Pattern(Layout((4, 2)), "hadamard", 0.5).sample((4, 2), torch.Generator())
        tensor([[ 0.5000,  0.5000],
                [ 0.5000, -0.5000],
                [ 0.5000,  0.5000],
                [ 0.5000, -0.5000]])
    """

    layout: Layout
    kind: Kind
    gain: float = 1.0
    reason: str = reason_field()

    def __post_init__(self) -> None:
        check_std(self.gain, "gain")

    @property
    def _moments(self) -> tuple[float, float]:
        """Mean and mean square of the entries of one block at gain 1."""
        rows, columns = self.layout.rows, self.layout.columns
        size = max(rows * columns, 1)
        if self.kind == "hadamard":
            return sum_of_hadamard(rows, columns) / size, 1.0
        ones = (min if self.kind == "identity" else max)(rows, columns)
        ones = 0 if min(rows, columns) == 0 else ones
        return ones / size, ones / size

    @property
    def mean(self) -> float:
        """Mean over the whole tensor."""
        return self.gain * self._moments[0] * self.layout.density

    @property
    def std(self) -> float:
        """Standard deviation over the whole tensor."""
        square = self.gain**2 * self._moments[1] * self.layout.density
        return math.sqrt(max(square - self.mean**2, 0.0))

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:  # noqa: ARG002
        """Make the float32 tensor on the CPU; draws nothing."""
        if tuple(shape) != self.layout.shape:
            raise ValueError(f"made for shape {self.layout.shape}, but got shape {tuple(shape)}")
        rows, columns = self.layout.rows, self.layout.columns
        if self.kind == "hadamard":
            matrix = _hadamard(rows, columns).mul_(self.gain)
        else:
            matrix = torch.zeros(rows, columns)
            short = min(rows, columns)
            reach = short if self.kind == "identity" else max(rows, columns)
            at = torch.arange(reach if short else 0)
            i, j = (at, at % short) if rows >= columns else (at % short, at)
            matrix[i, j] = self.gain
        return self.layout.place(matrix.expand(self.layout.blocks, -1, -1)).contiguous()

    def scaled(self, factor: float) -> Self:
        """The same with its gain multiplied by `factor`: the mean too, if it is not 0."""
        return replace(self, gain=self.gain * factor)

    def __str__(self) -> str:
        blocks = f" in each of {self.layout.blocks} blocks" if self.layout.blocks > 1 else ""
        at = " at the centre tap" if self.layout.taps else ""
        return f"{self.kind} x {self.gain:.4g}{at}{blocks}"


def _hadamard(rows: int, columns: int) -> Tensor:
    matrix = torch.empty(rows, columns)
    across = torch.arange(columns, dtype=torch.int32)
    step = max(1, _CHUNK // max(columns, 1))
    for start in range(0, rows, step):
        down = torch.arange(start, min(start + step, rows), dtype=torch.int32)
        bits = down[:, None] & across
        for shift in (16, 8, 4, 2, 1):  # the parity of all bits ends in the last one
            bits ^= bits >> shift
        matrix[start : start + step] = 1 - 2 * (bits & 1)
    return matrix


@cache
def sum_of_hadamard(rows: int, columns: int) -> int:
    """The sum over the first rows and columns of Sylvester's Hadamard matrix.

    Example:
        >>> sum_of_hadamard(4, 4), sum_of_hadamard(3, 2)
        (4, 4)
    """
    small, large = sorted((rows, columns))
    if small == 0:
        return 0
    half = 1
    while 2 * half < large:
        half *= 2
    if large == 1 or small == 1:  # the first row and column are all 1
        return large
    if large == 2 * half:  # all columns but the first cancel, row by row
        return large
    # [[H, H], [H, -H]], cut: what is left of the lower and of the right half is less than half
    low, right = max(small - half, 0), large - half
    corner = sum_of_hadamard(min(small, half), half)
    return (
        corner
        + sum_of_hadamard(min(small, half), right)
        + sum_of_hadamard(low, half)
        - sum_of_hadamard(low, right)
    )
