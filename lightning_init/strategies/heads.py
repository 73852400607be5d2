"""Output layers that start at what is known of the answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import nn

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.params import Architecture, ParamInfo, Role
from lightning_init.strategies.chain import modifier
from lightning_init.strategies.distributions import Constant, Distribution, Normal
from lightning_init.strategies.given import Given
from lightning_init.strategies.initializers import HEAD, Initializer, matches
from lightning_init.strategies.needs import check_needs, unsuitable
from lightning_init.strategies.registry import Strategy, strategy

Weights = Literal["below", "small", "zero"]
_SMALL = 0.01  # of RetinaNet


@dataclass(frozen=True, slots=True)
class PriorHead:
    """Another initializer, but output biases at the prior.

    Args:
        below: The other initializer.
        pi: Probability that each output starts at; 0 takes the labels.
        weight: What becomes of these layers' weights.
        layers: Names of the layers that are meant; None means all output layers.

    Example:
        >>> from lightning_init.strategies.initializers import keep
        >>> bias = ParamInfo(("head.bias",), (2,), Role.BIAS, answer=(-0.1, -2.3))
        >>> print(PriorHead(keep)(bias))
        2 given values, -2.3 to -0.1
    """

    below: Initializer
    pi: float = 0.0
    weight: Weights = "below"
    layers: frozenset[str] | None = None

    def __call__(self, info: ParamInfo) -> Distribution:
        """The distribution of one tensor."""
        if info.role is Role.BIAS and self.pi and matches(HEAD, info):
            start = -math.log((1 - self.pi) / self.pi)
            return Constant(start, reason=f"logit of the prior {self.pi:g}")
        if info.role is Role.BIAS and not self.pi and len(info.answer) == info.numel:
            return Given(info.answer, reason="the best constant answer to the batch's labels")
        meant = info.role is Role.WEIGHT and matches(HEAD, info)
        if self.weight == "below" or not meant or not self._means(info):
            return self.below(info)
        if self.weight == "zero":
            return Constant(0.0, reason="the prior alone")
        return Normal(_SMALL, reason="near the prior")

    def _means(self, info: ParamInfo) -> bool:
        return self.layers is None or any(_layer(name) in self.layers for name in info.names)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


@strategy(search=False, needs=("forward",))
def prior_head(
    pi: Annotated[float, Range(0.0, 0.999)] = 0.0, weight: Weights = "below"
) -> Strategy:
    """Output bias b_c = log p_c (softmax), log(p / (1 - p)) (sigmoid) or the mean target.

    The loss then starts at that of the best constant answer, and the first steps need not learn
    it. Frequencies p are those of the labels in the batch, which the forward pass must turn into a
    loss of PyTorch, weighted, smoothed and left out as that loss is told; a class that the batch
    lacks counts as half a label, and an absolute error takes the median. For other losses, such as
    the focal one, or for rare objects, `pi` says the probability of each output instead:
    b = -log((1 - pi) / pi); it means sigmoids, a softmax is not moved by it. All else is as the
    scheme below decides, alone `auto`'s table.

    Args:
        pi: Probability that each output starts at, 0 to 0.999, in RetinaNet 0.01; 0 takes the
            labels.
        weight: Of the same layers: `"below"` leaves them to the scheme below, `"small"` draws
            N(0, 0.01^2) as RetinaNet, `"zero"` starts exactly at the prior.

    References:
        Lin et al. (2017), section 3.3, https://arxiv.org/abs/1708.02002

    Example:
        >>> from lightning_init import initialize_
        >>> model, x = nn.Linear(4, 2), torch.randn(40, 4)
        >>> y = torch.tensor([0] * 30 + [1] * 10)
        >>> loss = lambda: nn.functional.cross_entropy(model(x), y)
        >>> plan = initialize_(model, "prior_head", seed=0, forward=loss)
        >>> model.bias.softmax(0)
        tensor([0.7500, 0.2500], grad_fn=<SoftmaxBackward0>)
    """

    def changed(layers: frozenset[str] | None) -> Callable[[Initializer], Initializer]:
        return lambda below: PriorHead(below, pi, weight, layers)

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:  # noqa: ARG001
        if pi:
            if not any(info.role is Role.BIAS and matches(HEAD, info) for info in architecture):
                text = "prior_head needs an output layer with a bias, but there is none: "
                raise unsuitable(text, "auto")
            return modifier(changed(None))
        check_needs("prior_head", ("labels",), architecture, "auto")
        known = [name for info in architecture if info.answer for name in info.names]
        return modifier(changed(frozenset(map(_layer, known))))

    return modifier(changed(None), prepare=prepare)
