"""Draws that reach a weight through its parametrization: what becomes of them, found on a copy."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Generator, Tensor, nn

from lightning_init.architecture.names import named_weights
from lightning_init.architecture.parametrized import Derived
from lightning_init.strategies.distributions import Distribution, reason_field
from lightning_init.strategies.plan import PlanEntry

# Nobody's own seed: a mask that was drawn from the same numbers would pick among them.
_TRIAL = 0x1A2B3C4D5E6F
_CLOSE = 0.01  # relative; more than what bfloat16 rounds off, less than what any rule means


@dataclass(frozen=True, slots=True)
class Assigned:
    """A draw that the weight's parametrization changes: spectral_norm rescales, pruning zeroes.

    Args:
        drawn: What is drawn and assigned.
        by: What changes it.
        std: Of the weight in a trial; of another draw it is a little different.
        mean: Of the weight in a trial.

    Example:
        >>> from lightning_init.strategies.distributions import Normal
        >>> print(Assigned(Normal(0.5), "SpectralNorm", 0.1, 0.0))
        normal, std 0.5, made std 0.1 by SpectralNorm
    """

    drawn: Distribution
    by: str
    std: float
    mean: float
    reason: str = reason_field()

    @property
    def key(self) -> tuple[str, ...]:
        """The names that the randomness of what is drawn is made from, if it is shared."""
        shared: tuple[str, ...] = getattr(self.drawn, "key", ())
        return shared

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw what is assigned."""
        return self.drawn.sample(shape, generator)

    def scaled(self, factor: float) -> Self:
        """The same with the std of what is drawn multiplied by `factor`."""
        return replace(self, drawn=self.drawn.scaled(factor))

    def __str__(self) -> str:
        return f"{self.drawn}, made std {self.std:.4g} by {self.by}"


def through_parametrizations(
    model: nn.Module, entries: tuple[PlanEntry, ...]
) -> tuple[PlanEntry, ...]:
    """The entries with what parametrizations make of their draws, tried on copies.

    Args:
        model: The model that is planned.
        entries: One per tensor.

    Returns:
        The same entries; a draw that its weight cannot take up as it is becomes `Assigned`.

    Raises:
        ValueError: If a weight that is to be drawn cannot be assigned to.
    """
    weights = named_weights(model)
    return tuple(
        replace(entry, distribution=_tried(entry, weights[entry.info.names]))
        if entry.written and entry.info.names in weights
        else entry
        for entry in entries
    )


def assign(entry: PlanEntry, weights: list[Derived], generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw a computed weight and assign it.

    Args:
        entry: From the plan.
        weights: The weights that are computed from its tensor; more than one if they are tied.
        generator: What it is drawn from.

    Returns:
        What was assigned and what the weight has become.

    Raises:
        ValueError: If it cannot be assigned to; the weight at fault is then as before.
    """
    value = entry.drawn(generator)
    try:
        found = [weight.assign(value, generator) for weight in weights]
    except ValueError as error:
        raise ValueError(
            f"cannot initialize: {entry.info.name} {error}; or leave such tensors alone by a "
            "`scope` that names the others. Nothing has been changed"
        ) from error
    return value, found[0]


def is_close(found: Tensor, value: Tensor) -> bool:
    """Whether a weight has become what was assigned, but for rounding."""
    wanted = value.to(found.device, torch.float32)
    off = torch.linalg.vector_norm(found.float() - wanted)
    return bool(off <= _CLOSE * torch.linalg.vector_norm(wanted))


def unscalable(model: nn.Module) -> set[tuple[str, ...]]:
    """The weights whose parametrization sets their scale: spectral norm, orthogonal matrices.

    Example:
        >>> unscalable(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)))
        {('weight', 'parametrizations.weight.original')}
        >>> unscalable(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
        set()
    """
    found = set()
    for names, weights in named_weights(model).items():
        with suppress(Exception), torch.no_grad():  # it holds what cannot be copied
            twice = 2 * weights[0].value()
            if not is_close(weights[0].copied().assign(twice), twice):
                found.add(names)
    return found


def _tried(entry: PlanEntry, weights: list[Derived]) -> Distribution:
    drawn = entry.distribution
    if any(original.is_meta for weight in weights for original in weight.originals):
        return drawn
    try:
        copies = [weight.copied() for weight in weights]
    except Exception:  # it holds what cannot be copied: the draw itself will show
        return drawn
    value, found = assign(entry, copies, Generator().manual_seed(_TRIAL))
    if is_close(found, value):
        return drawn
    found, by = found.float(), weights[0].kind
    std = float(found.std(correction=0))
    reason = f"{drawn.reason}; {by} changes what it is given"
    return Assigned(drawn, by, std, float(found.mean()), reason=reason)
