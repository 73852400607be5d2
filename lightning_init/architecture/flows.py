"""What a probe measured of the signals that flow beside the outputs of layers."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Histogram:
    """How the values of one output are distributed, for a plot.

    Attributes:
        low: Left end of the first bin.
        high: Right end of the last bin.
        shares: Fraction of the values per bin, bins of equal width; values beyond the ends count
            in the first and the last.
    """

    low: float
    high: float
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ActivationReading:
    """The nonlinearity that follows a weight layer, at one step.

    Attributes:
        function: Its canonical name, e.g. `relu`, `tanh`, `gelu`.
        mean: Mean of its output.
        std: Standard deviation of its output.
        rms: Root mean square of its output.
        absmax: Largest magnitude of its output.
        zeros: Fraction of exact zeros.
        dead: Fraction of units that were zero for every row that was read; NaN for functions that
            are never flat at zero.
        saturated: Fraction of outputs where the function is flat: tanh beyond +-0.97, sigmoid
            outside of (0.03, 0.97), a clamp at its ends; NaN for functions that do not saturate.
        units: Number of units (channels of a convolution).
        rows: Number of values per unit that were read.
        histogram: Distribution of its output; None where it was not sampled.
    """

    function: str
    mean: float
    std: float
    rms: float
    absmax: float
    zeros: float
    dead: float = math.nan
    saturated: float = math.nan
    units: int = 0
    rows: int = 0
    histogram: Histogram | None = None


@dataclass(frozen=True, slots=True)
class AttentionReading:
    """One softmax over attention logits at one step.

    Attributes:
        name: The module in which it ran.
        entropy: Mean over queries of the entropy of the weights over ln of the visible keys: 1 is
            uniform, 0 is one key.
        logit_max: Largest magnitude of a logit that is not masked.
        logit_std: Standard deviation of the logits of one query, root mean square over queries.
        keys: Visible keys, mean over queries.
    """

    name: str
    entropy: float
    logit_max: float
    logit_std: float
    keys: float


@dataclass(frozen=True, slots=True)
class InputReading:
    """What the model's first weight layers take from outside, at one step.

    Attributes:
        name: The layer that takes it.
        mean: Mean over all entries.
        std: Standard deviation over all entries.
        rms: Root mean square.
        absmax: Largest magnitude.
        spread: Largest over smallest standard deviation of a feature (of those that vary), 1 if
            there is one feature only.
        normalized: Whether the layer's result goes straight into a norm layer, which undoes scale.
        finite: Whether every entry is a number.
    """

    name: str
    mean: float
    std: float
    rms: float
    absmax: float
    spread: float = 1.0
    normalized: bool = False
    finite: bool = True
