"""What a probe measured: plain numbers per layer, tensor, loss call and step.

Detectors are functions of `Readings` alone, so they are tested without a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LayerReading:
    """One weight layer's output at one step.

    Attributes:
        name: The module's name.
        kind: Its class.
        group: Layers of one group follow each other through the depth of the model: repeated
            blocks, else layers of one class; `""` for those that are not compared.
        mean: Mean of the output.
        std: Standard deviation of the output.
        rms: Root mean square of the output.
        absmax: Largest magnitude.
        zeros: Fraction of exact zeros.
        grad_norm: Euclidean norm of the loss gradient with respect to the output, NaN if there is
            none.
        grad_rms: The same per element, root mean square.
        rescaled: Whether norm layers between the layers of the group set the scale anew.
    """

    name: str
    kind: str
    group: str
    mean: float
    std: float
    rms: float
    absmax: float
    zeros: float
    grad_norm: float = math.nan
    grad_rms: float = math.nan
    rescaled: bool = False

    @property
    def finite(self) -> bool:
        """Whether every entry of the output is a number."""
        return math.isfinite(self.rms) and math.isfinite(self.absmax)


@dataclass(frozen=True, slots=True)
class WeightReading:
    """One parameter tensor at one step.

    Attributes:
        name: Its canonical name.
        numel: Number of elements that were drawn.
        mean: Mean of its values.
        std: Standard deviation of its values.
        expected_mean: What the plan says; NaN if the plan keeps it or there is no plan.
        expected_std: Likewise.
        drawn: The plan's distribution in words.
        grad_rms: Root mean square of its gradient, NaN if it has none.
        finite: Whether values and gradient are all numbers.
    """

    name: str
    numel: int
    mean: float
    std: float
    expected_mean: float = math.nan
    expected_std: float = math.nan
    drawn: str = ""
    grad_rms: float = math.nan
    finite: bool = True


@dataclass(frozen=True, slots=True)
class LossReading:
    """One call of a loss function, and what it would be for a model that knows nothing.

    Attributes:
        kind: The function in words, e.g. `cross-entropy over 10 classes`.
        value: The loss per element.
        chance: The loss of an output that says nothing: ln C, ln 2, or the mean squared target.
        prior: The loss of the best constant answer: the labels' entropy, or their variance.
        exact: Whether `chance` is the ceiling of a sane start (classification) or only its order
            of magnitude (regression, whose outputs add their own variance).
    """

    kind: str
    value: float
    chance: float
    prior: float
    exact: bool


@dataclass(frozen=True, slots=True)
class StepReading:
    """Everything that was read at one sampled step."""

    step: int
    layers: tuple[LayerReading, ...] = ()
    weights: tuple[WeightReading, ...] = ()
    losses: tuple[LossReading, ...] = ()


@dataclass(frozen=True, slots=True)
class Readings:
    """All that was read so far.

    Attributes:
        steps: Sampled steps in order; step 0 is before the first update.
        loss: Training loss of every step so far, by step number.
        skips_allowed: Whether a gradient scaler may skip steps whose gradient overflows.
        trained: Whether trained weights are part of the model, which then knows something.
    """

    steps: tuple[StepReading, ...] = ()
    loss: dict[int, float] = field(default_factory=dict)
    skips_allowed: bool = False
    trained: bool = False
