"""`auto`: a distribution per tensor from facts, as a table that reads top to bottom.

| fact                                | distribution                                         |
|-------------------------------------|------------------------------------------------------|
| initialized by the model itself     | as built: its own recipe                             |
| norm                                | the identity                                         |
| bias of an output, labels at hand   | log prior (mean target), where they are uneven       |
| bias of an LSTM's forget gate       | 1, once of its two biases                            |
| other bias                          | 0                                                    |
| table tied to the output layer      | N(0, 1 / width), and so are tables added to it       |
| other table                         | N(0, 1), PyTorch's own: a lookup sums nothing        |
| hidden-to-hidden matrix             | orthogonal, per gate                                 |
| output layer                        | N(0, 1 / fan_in): logits of order 1                  |
| a norm layer alone takes its result | U(+-1/sqrt(fan_in)), PyTorch's own: any scale is good |
| in a model with attention           | Xavier normal, per query, key and value              |
| before SELU                         | LeCun normal                                         |
| before tanh or sigmoid              | Xavier normal                                        |
| before ReLU-like activations        | Kaiming normal, fan_in                               |
| before sin                          | as built: its own scheme knows its frequency         |
| otherwise                           | Xavier normal                                        |

Where a residual branch ends, std is divided by sqrt(branches), unless a norm takes the result.
LoRA matrices, branch scales, tokens and other vectors that are no weights stay as built.
`benchmarks/auto.py` measures the table against models as built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_init.architecture.params import Architecture, ParamInfo, Role
from lightning_init.strategies.distributions import Constant, Distribution, Keep, Normal
from lightning_init.strategies.given import Given
from lightning_init.strategies.initializers import BranchScaled, ByRole, Initializer
from lightning_init.strategies.orthogonal import Orthonormal
from lightning_init.strategies.plan import CUSTOMIZED
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.spec import InitSpec
from lightning_init.strategies.variance import RELU_LIKE, VarianceScaling

_XAVIER = VarianceScaling(1, "fan_avg", 1.0, "normal", "Xavier")
_SELU = VarianceScaling(1, "fan_in", 1.0, "normal", "LeCun, before SELU")
_NORMALIZED = VarianceScaling(
    1 / 3, "fan_in", 1.0, "uniform", "PyTorch's own, a norm layer takes the result"
)
_RELU = VarianceScaling(2, "fan_in", 1.0, "normal", "Kaiming, before a ReLU-like activation")


def head(info: ParamInfo) -> Distribution:
    """N(0, 1 / fan_in): logits of std 1 for inputs of order 1, half a nat above chance.

    A smaller head starts nearer to chance and learns more slowly: half this std lost in 14 of 16
    short trainings of `benchmarks/models.py`.

    Example:
        >>> head(ParamInfo(("head.weight",), (10, 100), Role.WEIGHT, fan_in=100)).std
        0.1
    """
    return Normal(1 / math.sqrt(info.fan_in), reason="output layer: logits of order 1")


def weight(info: ParamInfo) -> Distribution:
    """The rows of the table above that speak of matrices and kernels."""
    usage = info.usage
    if info.numel == 0:
        return Keep("empty")
    if usage and usage.is_output and not usage.ends_branch:
        return head(info)
    if usage and usage.normalized:
        return _NORMALIZED(info)
    law = _XAVIER if "attention" in info.traits else _law(info.activation)
    if law is None:
        return Keep("as built: before sin, a scheme of its own knows the frequency")
    return BranchScaled(law)(info)


def _law(activation: str) -> Initializer | None:
    if activation == "sin":
        return None
    if activation == "selu":
        return _SELU
    return _RELU if activation in RELU_LIKE else _XAVIER


def bias(info: ParamInfo) -> Distribution:
    """The rows of the table above that speak of biases.

    Example:
        >>> bias(ParamInfo(("b",), (2,), Role.BIAS, prior=(0.5, -0.5)))
        Given(values=(0.5, -0.5), reason="what the batch's labels are on average")
    """
    if info.prior and len(info.prior) == info.numel:
        return Given(info.prior, reason="what the batch's labels are on average")
    if info.part == "forget":
        return Constant(1.0, reason="forget gate open")
    return Constant(0.0, reason="zero")


def table(info: ParamInfo) -> Distribution:
    """The rows of the table above that speak of lookup tables and positions.

    Example:
        >>> table(ParamInfo(("wte", "head"), (50, 16), Role.EMBEDDING, traits={"tied table"})).std
        0.25
    """
    if "tied table" in info.traits:
        return Normal(info.shape[-1] ** -0.5, reason="a table is the output layer: 1/sqrt(width)")
    if info.role is Role.POSITION and not info.layer:
        return Keep("as built: added, not looked up")
    return Normal(1.0, reason="PyTorch's own: a lookup sums nothing")


@dataclass(frozen=True, slots=True)
class ExceptCustom:
    """Another initializer for all but what the model initializes itself.

    Example:
        >>> info = ParamInfo(("w",), (2, 2), Role.WEIGHT, 2, 2, provenance="custom")
        >>> str(ExceptCustom(weight)(info))
        'keep'
    """

    initializer: Initializer

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        if info.provenance == "custom":
            return Keep(CUSTOMIZED)
        return self.initializer(info)


TABLE = ByRole(
    weight=weight,
    recurrent=Orthonormal(1.0, "hidden to hidden"),
    embedding=table,
    bias=bias,
)


@strategy
def auto() -> Strategy:
    """By layer type, activation and place, read off one forward pass; keeps what you customized.

    Tensors that differ from their layer's default, because the model initializes them itself,
    stay as they are: naming a strategy overrides that.

    References:
        The rows quote He et al. (2015), Glorot & Bengio (2010), LeCun et al. (1998), Saxe et al.
        (2013) and Radford et al. (2019), see those strategies; for the forget gate Gers,
        Schmidhuber & Cummins (2000), Neural Computation 12(10); for the prior Lin et al. (2017),
        https://arxiv.org/abs/1708.02002, section 3.3.
    """
    return Strategy(ExceptCustom(TABLE))


@dataclass(frozen=True, slots=True)
class Recommendation:
    """An automatic choice that can be asked without being made.

    Attributes:
        spec: What to use.
        reason: Why, in a sentence.
        search_pays: Whether a search is worth its time here.
    """

    spec: InitSpec
    reason: str
    search_pays: bool


def recommend(architecture: Architecture) -> Recommendation:
    """What `auto` would do with a model, and whether a search is worth its time.

    Depth without normalization is what makes initialization matter: a search pays from 10 weight
    layers without norm layers, or 50 with them.

    Args:
        architecture: From `analyze`, best with a forward pass.

    Returns:
        The recommendation.

    Example:
        >>> from torch import nn
        >>> from lightning_init import analyze
        >>> recommend(analyze(nn.Linear(4, 2))).search_pays
        False
    """
    weights = [i for i in architecture if i.role in (Role.WEIGHT, Role.RECURRENT)]
    depth = max((i.usage.depth for i in weights if i.usage), default=len(weights))
    normalized = any("norm" in info.traits for info in architecture)
    pays = depth >= (50 if normalized else 10)
    layers = f"{depth} weight layers deep, {'with' if normalized else 'without'} normalization"
    return Recommendation(
        InitSpec("auto"), f"{layers}: {'sensitive' if pays else 'forgiving'} to its init", pays
    )
