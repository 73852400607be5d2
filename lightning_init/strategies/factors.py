"""Matrices drawn so that a product of two of them is what it should be.

Both factors come from one random matrix: each is drawn on its own, by making that matrix again
from randomness that the two share (`key`) and keeping its own half of the decomposition.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Self

import torch
from torch import Generator, Tensor

from lightning_init.strategies.distributions import check_std, reason_field

Product = Literal["query key", "value out"]
Side = Literal["left", "right"]

_WAITING: dict[tuple[object, ...], Tensor] = {}  # factors whose other half was drawn last
_MOST_WAITING = 2


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
    side: Side
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
        first = generator.initial_seed()
        seeds = tuple(_seed(first, self.product, head) for head in range(self.heads))
        drawn = _half(self.side, self.width, self.rank, self.alpha, self.beta, seeds)
        drawn = drawn.mul_(self.gain)  # (width, features)
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


def _half(
    side: Side, width: int, rank: int, alpha: float, beta: float, seeds: tuple[int, ...]
) -> Tensor:
    """One factor of all heads, (width, heads * rank).

    The other one is a by-product: it waits for being asked for, which is what comes next.
    """
    of = width, rank, alpha, beta, seeds
    found = _WAITING.pop((side, *of), None)
    if found is not None:
        return found
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # last bits depend on it
    try:
        with ThreadPoolExecutor(min(threads, len(seeds)), initializer=_on_one_thread) as pool:
            pairs = list(pool.map(lambda seed: _factors(width, rank, alpha, beta, seed), seeds))
    finally:
        torch.set_num_threads(threads)
    left, right = (torch.cat(halves, dim=1) for halves in zip(*pairs, strict=True))
    _WAITING[("right" if side == "left" else "left", *of)] = right if side == "left" else left
    while len(_WAITING) > _MOST_WAITING:
        _WAITING.pop(next(iter(_WAITING)), None)
    return left if side == "left" else right


def _on_one_thread() -> None:
    torch.set_num_threads(1)


def _factors(width: int, rank: int, alpha: float, beta: float, seed: int) -> tuple[Tensor, Tensor]:
    """U sqrt(S) and V sqrt(S), each (width, rank)."""
    generator = Generator().manual_seed(seed)
    noise = torch.empty(width, width).normal_(0, width**-0.5, generator=generator)
    signs = torch.empty(rank).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
    u, s, v = _largest(noise.mul_(alpha) + beta * torch.eye(width), rank)
    # a pair of singular vectors may be negated: libraries differ, so the generator decides
    first = u.gather(0, u.abs().argmax(0, keepdim=True))[0]
    root = s.sqrt() * signs * torch.where(first < 0, -1.0, 1.0)
    return u * root, v * root


def _largest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular values, descending, and their vectors in columns.

    Where few of them are wanted, none is near 0: the eigenvectors of A^T A are as exact then, and
    take half the time.
    """
    if 2 * rank > len(matrix):
        u, s, vh = torch.linalg.svd(matrix)
        return u[:, :rank], s[:rank], vh[:rank].T
    v = torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -rank:].flip(1)
    u = matrix @ v
    s = torch.linalg.vector_norm(u, dim=0)
    return u / s, s, v


@lru_cache(maxsize=64)
def _typical(width: int, rank: int, alpha: float, beta: float) -> float:
    left, _ = _factors(width, rank, alpha, beta, 0)
    return float(left.square().mean().sqrt())
