"""Matrices drawn so that a product of two of them is what it should be.

Both factors come from one random matrix: each is drawn on its own, by making that matrix again
from randomness that the two share (`key`) and keeping its own half of the decomposition.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Self

import torch
from torch import Generator, Tensor

from lightning_init.strategies.distributions import check_std, reason_field

Product = Literal["query key", "value out"]


@dataclass(frozen=True, slots=True)
class Factor:
    """One of two factors of alpha Z + beta I with Z ~ N(0, 1/d), the best of its rank.

    With the singular value decomposition U S V^T of alpha Z + beta I, cut to the first `rank`
    singular values, the left factor is U sqrt(S) and the right one V sqrt(S): left @ right^T is
    the best approximation of that rank. A layer computes x @ weight^T, so its weight is the
    transposed factor: `query^T @ key` of each head, `(out @ value)^T`.

    Args:
        product: Which two matrices are factors of what.
        side: Which factor this is.
        width: d.
        rank: Singular values that are kept.
        heads: Independent pairs, stacked along the features that both factors share.
        alpha: Factor on the noise.
        beta: Factor on the identity.
        axis: The dimension of output features.
        key: The names that the generator is made from, the same for both factors.
        gain: Factor on the result.

    References:
        Eckart & Young (1936), Psychometrika 1(3) (the best approximation of a rank)

    Example:
        >>> query = Factor("query key", "left", 8, 4, 1, 0.7, 0.7, 0, ("q",))
        >>> key = replace(query, side="right")
        >>> q, k = (each.sample((4, 8), torch.Generator().manual_seed(0)) for each in (query, key))
        >>> torch.linalg.matrix_rank(q.T @ k).item()
        4
    """

    product: Product
    side: Literal["left", "right"]
    width: int
    rank: int
    heads: int
    alpha: float
    beta: float
    axis: int
    key: tuple[str, ...]
    gain: float = 1.0
    reason: str = reason_field()

    def __post_init__(self) -> None:
        check_std(self.gain, "gain")
        if not 0 < self.rank <= self.width:
            raise ValueError(
                f"`0 < rank <= width` must hold, but got rank={self.rank} and width={self.width}"
            )

    @property
    def std(self) -> float:
        """Root mean square of the entries in a trial; other draws differ by about 1 / width."""
        return self.gain * _typical(self.width, self.rank, self.alpha, self.beta)

    @property
    def mean(self) -> float:
        """0: singular vectors have random signs."""
        return 0.0

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw a float32 tensor on the CPU.

        The seed of the generator counts, not its state: the other factor has the same one.
        """
        at = 0 if self.side == "left" else 1
        seeds = (_seed(generator.initial_seed(), self.product, i) for i in range(self.heads))
        sides = [_factors(self.width, self.rank, self.alpha, self.beta, seed)[at] for seed in seeds]
        drawn = torch.cat(sides, dim=1).mul_(self.gain)  # (width, features)
        # a weight is (outputs, inputs), and features are what `out` reads and the others write
        drawn = drawn if self._reads else drawn.T
        drawn = drawn.T if self.axis else drawn
        if tuple(shape) != tuple(drawn.shape):
            raise ValueError(f"drawn for shape {tuple(drawn.shape)}, but got shape {tuple(shape)}")
        return drawn.contiguous()

    @property
    def _reads(self) -> bool:
        return self.product == "value out" and self.side == "right"

    def scaled(self, factor: float) -> Self:
        """The same with every entry multiplied by `factor`."""
        return replace(self, gain=self.gain * factor)

    def __str__(self) -> str:
        name = self.product.split()[self.side == "right"]
        sign = "-" if self.beta < 0 else "+"
        each = f", {self.heads} heads of rank {self.rank}" if self.heads > 1 else ""
        gain = f", times {self.gain:.4g}" if self.gain != 1 else ""
        identity = f"{sign} {abs(self.beta):.4g} I"
        return f"{name} factor of {self.alpha:.4g} Z {identity}{each}{gain}"


def _seed(seed: int, product: str, head: int) -> int:
    digest = hashlib.sha256(f"{seed}|{product}|{head}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _factors(width: int, rank: int, alpha: float, beta: float, seed: int) -> tuple[Tensor, Tensor]:
    """U sqrt(S) and V sqrt(S), each (width, rank), on one thread: last bits depend on threads."""
    generator = Generator().manual_seed(seed)
    noise = torch.empty(width, width).normal_(0, width**-0.5, generator=generator)
    signs = torch.empty(rank).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        u, s, vh = torch.linalg.svd(noise.mul_(alpha) + beta * torch.eye(width))
    finally:
        torch.set_num_threads(threads)
    u, v, root = u[:, :rank], vh[:rank].T, s[:rank].sqrt()
    # a pair of singular vectors may be negated: libraries differ, so the generator decides
    first = u.gather(0, u.abs().argmax(0, keepdim=True))[0]
    root = root * signs * torch.where(first < 0, -1.0, 1.0)
    return u * root, v * root


@lru_cache(maxsize=64)
def _typical(width: int, rank: int, alpha: float, beta: float) -> float:
    left, _ = _factors(width, rank, alpha, beta, 0)
    return float(left.square().mean().sqrt())
