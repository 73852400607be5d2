"""Sampled outputs as histograms: what a plot of the distributions over depth needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_init.architecture.readings import Histogram, LayerReading

_BINS = 60
_TAIL = 0.002  # beyond these quantiles values count in the outermost bins


def histogram(values: Tensor) -> Histogram | None:
    """The distribution of sampled values; None if they are not all numbers.

    Args:
        values: Of any shape.

    Example:
        >>> found = histogram(torch.tensor([0.0, 0.0, 0.0, 1.0]))
        >>> found.low, found.high, found.shares[0], found.shares[-1]
        (0.0, 1.0, 0.75, 0.25)
    """
    flat = values.detach().flatten().to("cpu", torch.float64)
    if not flat.numel() or not bool(flat.isfinite().all()):
        return None
    ends = torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64)
    low, high = torch.quantile(flat, ends, interpolation="nearest").tolist()
    if low == high:
        low, high = flat.aminmax()[0].item(), flat.aminmax()[1].item()
    if low == high:
        half = abs(low) * 1e-3 or 1e-3
        low, high = low - half, high + half
    counts = torch.histc(flat.clamp(low, high), _BINS, low, high)
    return Histogram(low, high, tuple((counts / flat.numel()).tolist()))


def with_histograms(
    layers: Iterable[LayerReading], samples: Mapping[str, Tensor]
) -> tuple[LayerReading, ...]:
    """Readings with the distribution of each output, and of what its nonlinearity makes of it.

    Args:
        layers: The readings.
        samples: Layer name -> some values of its output.
    """
    found = []
    for layer in layers:
        if layer.name not in samples:
            found.append(layer)
            continue
        values = samples[layer.name]
        after = layer.after
        if after is not None and (function := getattr(F, after.function, None)) in _PLAIN:
            after = replace(after, histogram=histogram(function(values)))
        found.append(replace(layer, histogram=histogram(values), after=after))
    return tuple(found)


# Functions without arguments of their own: of others the name does not say what they do.
_PLAIN = (F.relu, F.relu6, F.tanh, F.sigmoid, F.gelu, F.silu, F.mish, F.selu, F.softplus)
