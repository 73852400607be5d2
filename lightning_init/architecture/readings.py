"""What a probe measured: plain numbers per layer, tensor, loss call and step.

Detectors are functions of `Readings` alone, so they are tested without a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lightning_init.architecture.flows import (
    ActivationReading as ActivationReading,
    AttentionReading as AttentionReading,
    Histogram as Histogram,
    InputReading as InputReading,
)


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
        input_rms: Root mean square of what the layer takes.
        expected_rms: Root mean square that the output should have: weights of the planned std (of
            their own, where nothing was planned) and fan-in on an input of `input_rms`; NaN where
            that is not known, as for blocks.
        sample_cosine: Mean cosine between the outputs of two samples: 1 if all are alike.
        unit_cosine: Mean cosine between the outputs of two units over the samples.
        is_output: Whether it is the last weight layer that ran.
        after: The nonlinearity that follows, None if none does.
        histogram: Distribution of the output; None where it was not sampled.
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
    input_rms: float = math.nan
    expected_rms: float = math.nan
    sample_cosine: float = math.nan
    unit_cosine: float = math.nan
    is_output: bool = False
    after: ActivationReading | None = None
    histogram: Histogram | None = None

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
        role: What the tensor does, as `Role` says: `weight`, `bias`, `norm_scale`, ...
        module: Name of the module that owns it.
        shape: Its shape.
        fan_in: Products summed into one output element.
        names: All its names, more than one if it is tied.
        trainable: Whether it takes a gradient at all.
        written: Whether the plan drew it.
        trained: Whether it was loaded, not drawn.
        twins: Fraction of its output units whose weights and gradients are those of another unit:
            they stay alike for ever. NaN where it was not read.
        update: Norm of the last update over the norm of the weight; NaN without an update, and for
            vectors.
        lr: Learning rate of its parameter group, NaN if unknown.
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
    role: str = ""
    module: str = ""
    shape: tuple[int, ...] = ()
    fan_in: float = math.nan
    names: tuple[str, ...] = ()
    trainable: bool = True
    written: bool = False
    trained: bool = False
    twins: float = math.nan
    update: float = math.nan
    lr: float = math.nan

    @property
    def rms(self) -> float:
        """Root mean square of its values."""
        return math.hypot(self.mean, self.std)


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
        outputs: What the loss was given, as far as its values tell: `probabilities` (rows in
            [0, 1] that sum to 1), `log-probabilities`, `fractions` (in [0, 1], no sum),
            `nonnegative`, `logits`; `""` if it was not read.
        classes: Number of classes, 0 for regression.
        low: Smallest output.
        high: Largest output.
        target_low: Smallest target.
        target_high: Largest target.
        spread: Standard deviation of the outputs over the samples, mean over outputs.
        varies: Whether weights of the answers make chance another one for every batch.
    """

    kind: str
    value: float
    chance: float
    prior: float
    exact: bool
    outputs: str = ""
    classes: int = 0
    low: float = math.nan
    high: float = math.nan
    target_low: float = math.nan
    target_high: float = math.nan
    spread: float = math.nan
    varies: bool = False


@dataclass(frozen=True, slots=True)
class StepReading:
    """Everything that was read at one sampled step.

    Attributes:
        step: Its number; 0 is before the first update.
        layers: In execution order.
        weights: In registration order.
        losses: In execution order; at step 0 only.
        inputs: In execution order.
        attentions: In execution order.
    """

    step: int
    layers: tuple[LayerReading, ...] = ()
    weights: tuple[WeightReading, ...] = ()
    losses: tuple[LossReading, ...] = ()
    inputs: tuple[InputReading, ...] = ()
    attentions: tuple[AttentionReading, ...] = ()


@dataclass(frozen=True, slots=True)
class BaselineReading:
    """A model with one hidden layer that was trained beside the user's on the same batches.

    Attributes:
        deep: Loss of the user's model by step number: of the very loss call that both share.
        shallow: Loss of the model with one hidden layer.
        width: Units of its hidden layer.
        lr: Learning rate of both at the first step, NaN if unknown.
    """

    deep: dict[int, float]
    shallow: dict[int, float]
    width: int
    lr: float = math.nan


@dataclass(frozen=True, slots=True)
class Readings:
    """All that was read so far.

    Attributes:
        steps: Sampled steps in order; step 0 is before the first update.
        loss: Training loss of every step so far, by step number.
        skips_allowed: Whether a gradient scaler may skip steps whose gradient overflows.
        trained: Whether trained weights are part of the model, which then knows something.
        bad_batches: Steps at which the batch itself held NaN or infinity.
        lr: Largest learning rate of the optimizers, by step number.
        rows: Samples of a batch, 0 if unknown.
        baseline: What a shallow model reached on the same batches, None if there was none.
        small_eps: An optimizer whose eps is too small for the precision of its weights, in words.
    """

    steps: tuple[StepReading, ...] = ()
    loss: dict[int, float] = field(default_factory=dict)
    skips_allowed: bool = False
    trained: bool = False
    bad_batches: tuple[int, ...] = ()
    lr: dict[int, float] = field(default_factory=dict)
    rows: int = 0
    baseline: BaselineReading | None = None
    small_eps: str = ""
