"""Which seed, and one generator per tensor.

A tensor's draw depends on (seed, canonical name) and on nothing else: not on the order of visits,
other layers, precision, device, threads, wrappers or the number of processes; and the global
random state is neither read nor moved.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import NamedTuple

import torch

from lightning_init.architecture.names import drawing_name

# Nobody types a larger seed: the system's own initial seed of a process is drawn above it.
_TYPED = 2**32


class Seed(NamedTuple):
    """A seed and where it comes from."""

    value: int
    source: str


def resolve_seed(seed: int | None) -> Seed:
    """The seed to use: the given one, else the global one, else one drawn from the system.

    Args:
        seed: 0 to 2^63 - 1, or None.

    Returns:
        The seed and its source in words.

    Example:
        >>> resolve_seed(3)
        Seed(value=3, source='given')
    """
    if seed is not None:
        return Seed(check_seed(seed), "given")
    if (everything := os.environ.get("PL_GLOBAL_SEED", "")).isdigit():
        return Seed(int(everything), "seed_everything")
    if torch.initial_seed() < _TYPED:
        return Seed(torch.initial_seed(), "torch.manual_seed")
    return Seed(secrets.randbelow(2**31), "drawn from the system")


def check_seed(seed: object) -> int:
    """The seed, if it is one.

    Raises:
        ValueError: Unless it is a whole number from 0 to 2^63 - 1.
    """
    if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63:
        return seed
    raise ValueError(f"`0 <= seed < 2**63` must hold for a whole number, but got seed={seed!r}")


def generator_for(seed: int, names: tuple[str, ...]) -> torch.Generator:
    """The generator of one tensor; a tied one is keyed by the first of its names in the alphabet.

    Example:
        >>> torch.rand(1, generator=generator_for(0, ("a",))).shape
        torch.Size([1])
    """
    digest = hashlib.sha256(f"{check_seed(seed)}|{drawing_name(names)}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
