"""Pruned layers, and layers that will be: what is not there sends no variance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Self

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import prune

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.names import named_weights
from lightning_init.architecture.params import Architecture, ParamInfo, Role
from lightning_init.strategies.distributions import Distribution, Normal, reason_field
from lightning_init.strategies.gains import Activation, observed_gain
from lightning_init.strategies.initializers import ByRole
from lightning_init.strategies.layout import layout_of
from lightning_init.strategies.needs import unsuitable
from lightning_init.strategies.parts import split
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.variance import Gain, kaiming_gain, tied_table


@dataclass(frozen=True, slots=True)
class RowNormal:
    """Normal draws with a std for each output unit.

    Args:
        stds: One per unit, at least 0.
        view: The shape in which they spread over the tensor.
        inner: The shape that the tensor is drawn in, of which `view` spreads; `()` if its own.

    Example:
        >>> draw = RowNormal((0.0, 1.0), (2, 1)).sample((2, 3), torch.Generator().manual_seed(0))
        >>> bool((draw[0] == 0).all()), bool((draw[1] == 0).any())
        (True, False)
    """

    stds: tuple[float, ...]
    view: tuple[int, ...]
    inner: tuple[int, ...] = ()
    reason: str = reason_field()

    @property
    def std(self) -> float:
        """Root mean square of what is drawn."""
        return math.sqrt(sum(std**2 for std in self.stds) / max(len(self.stds), 1))

    @property
    def mean(self) -> float:
        """0."""
        return 0.0

    def sample(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw a float32 tensor on the CPU."""
        drawn = torch.empty(self.inner or shape).normal_(generator=generator)
        return drawn.mul_(torch.tensor(self.stds).view(self.view)).view(shape)

    def scaled(self, factor: float) -> Self:
        """The same with every std multiplied by `factor`."""
        return replace(self, stds=tuple(std * factor for std in self.stds))

    def __str__(self) -> str:
        low, high = min(self.stds), max(self.stds)
        spread = f"{low:.4g} to {high:.4g}" if low < high else f"{low:.4g}"
        return f"normal, std {spread} by output unit"


@dataclass(frozen=True, slots=True)
class Connected:
    """How many inputs each output unit still has, and how they spread over the tensor."""

    counts: tuple[int, ...]
    most: int
    view: tuple[int, ...]
    inner: tuple[int, ...] = ()


@dataclass(frozen=True)
class SparseAware:
    """std = gain * sqrt(2 / inputs that are left) per output unit; sqrt(2) is 1 if no ReLU follows.

    Args:
        gain: A further factor.
        density: The share of weights that will be left of layers that have no mask.
        activation: Whether the gain of the function that follows stands for sqrt(2).
        masks: What the masks leave, by the tensor's first name and the part of it.
    """

    gain: float = 1.0
    density: float = 1.0
    activation: Activation = "fixed"
    masks: Mapping[tuple[str, str], Connected] = field(default_factory=dict)

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one matrix or kernel."""
        fixed = self.activation == "fixed"
        gain = self.gain * (kaiming_gain(info.activation) if fixed else observed_gain(info)[0])
        left = self.masks.get((info.name, info.part))
        fan = info.fan_in or 1.0
        if left is None:
            std = gain / math.sqrt(fan * self.density)
            reason = f"Kaiming: fan_in {fan:g}"
            return Normal(
                std, reason=f"{reason} x density {self.density:g}" if self.density < 1 else reason
            )
        per = fan / left.most  # less than 1 in a strided transposed convolution
        stds = tuple(gain / math.sqrt(n * per) if n else 0.0 for n in left.counts)
        share = sum(left.counts) / (left.most * len(left.counts))
        reason = f"Kaiming by the inputs that a mask leaves, {share:.1%}"
        return RowNormal(stds, left.view, left.inner, reason=reason)


@strategy(nearest="kaiming_normal", search=False)
def sparse_aware(
    density: Annotated[float, Range(1e-3, 1.0, log=True)] = 1.0,
    gain: Gain = 1.0,
    activation: Activation = "fixed",
) -> Strategy:
    """Std = gain * sqrt(2 / n), n the unmasked inputs of each output unit; sqrt(2/(in * density)) else.

    For layers with masks of `torch.nn.utils.prune`, unit by unit; the factor 2 is for layers
    followed by ReLU and its kin, 1 for others. The plan prints the std after masking. A layer that
    is yet to be pruned to `density` gets the variance that its remaining inputs will need. A unit
    without inputs stays 0.

    Args:
        density: Share of weights that will be left of layers without a mask, 0.001 to 1.
        gain: Factor on std, 0.5 to 2.
        activation: `observed` puts the gain of the function that follows for the factor sqrt(2).

    References:
        Evci, Ioannou, Keskin & Dauphin (2022), https://arxiv.org/abs/2010.03533

    Example:
        >>> from lightning_init import make_plan
        >>> model = nn.Sequential(nn.Linear(100, 10), nn.ReLU())
        >>> _ = nn.utils.prune.random_unstructured(model[0], "weight", 0.9)
        >>> print(make_plan(model, "sparse_aware")["0.weight"].by)
        pruning
    """

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
        masks = _masks(model, architecture)
        if not masks and density == 1:
            raise unsuitable(
                "sparse_aware needs pruning masks (torch.nn.utils.prune), but no weight has one: "
                "prune first, or give the density < 1 that pruning will leave, or ",
                "kaiming_normal",
            )
        return Strategy(_scheme(SparseAware(gain, density, activation, masks)))

    return Strategy(_scheme(SparseAware(gain, density, activation)), prepare=prepare)


def _scheme(rule: SparseAware) -> ByRole:
    return ByRole(weight=rule, embedding=tied_table)


def _masks(model: nn.Module, architecture: Architecture) -> dict[tuple[str, str], Connected]:
    """What pruning leaves of each matrix, and of the parts of fused ones."""
    found = {}
    for names, weights in named_weights(model).items():
        info = architecture[names[0]]
        rule = weights[0].rule
        matrix = info.role in (Role.WEIGHT, Role.RECURRENT) and len(info.shape) > 1
        if not isinstance(rule, prune.BasePruningMethod) or not matrix:
            continue
        mask = weights[0].module.get_buffer(f"{weights[0].name}_mask") != 0
        found[names[0], ""] = _connected(info, mask)
        for part, each in split(info) if info.parts else ():
            rows = torch.cat([torch.arange(start, stop) for start, stop in part.rows])
            own = mask.index_select(info.axis, rows.to(mask.device))
            found[names[0], part.name] = _connected(each, own)
    return found


def _connected(info: ParamInfo, mask: Tensor) -> Connected:
    layout, shape = layout_of(info), tuple(mask.shape)
    inner: tuple[int, ...] = ()
    dims = [dim for dim in range(len(shape)) if dim != info.axis]
    if layout.taps and layout.swapped:  # (groups, in, out, taps): a unit's inputs are in one group
        inner = (layout.blocks, layout.columns, layout.rows, math.prod(shape[-layout.taps :]))
        mask, dims = mask.reshape(inner), [1, 3]
    elif layout.taps:
        dims = list(range(1, len(shape)))
    elif len(shape) > 2 and layout.axis:  # experts lead
        dims = dims[1:] if layout.blocks > 1 else dims
    counts = mask.sum(dims, keepdim=True)
    flat = tuple(int(count) for count in counts.flatten())
    return Connected(flat, mask.numel() // max(len(flat), 1), tuple(counts.shape), inner)
