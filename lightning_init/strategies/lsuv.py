"""LSUV: every layer's output at unit variance, in one forward pass."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.params import ParamInfo
from lightning_init.strategies.calibration import Calibration
from lightning_init.strategies.gate import Accept, gated
from lightning_init.strategies.initializers import ByRole
from lightning_init.strategies.one_pass import Change, Layer
from lightning_init.strategies.orthogonal import Orthonormal
from lightning_init.strategies.passes import NOTHING, changed, few, shown, targets
from lightning_init.strategies.plan import Forward, Plan
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.variance import tied_table

DEAD = 1e-8  # an output whose std is below that times the target has nothing to scale


class Unit:
    """Scales each weight, or each matrix of a fused one, on its first use.

    Attributes:
        dead: Names of the weights whose output is constant.
    """

    def __init__(self) -> None:
        self.dead: dict[str, None] = {}
        self._done: set[object] = set()

    def __call__(self, layer: Layer) -> Change | None:
        """What becomes of a layer."""
        found: list[tuple[Tensor | None, Tensor]] = []
        for key, features in layer.blocks():
            if key in self._done:
                continue
            std = spread(layer.of(features))
            if not float(std) > DEAD * layer.target.goal:
                self.dead[layer.target.name] = None
                continue
            self._done.add(key)
            found.append((features, factor(layer, features, std)))
        if not found:
            return None
        if found[0][0] is None:
            return Change(found[0][1])
        factors = torch.ones(
            layer.product.shape[layer.feature], device=layer.product.device, dtype=torch.float32
        )  # whatever the default is: a Trainer in bfloat16 sets it while the model runs
        for features, number in found:
            assert features is not None
            factors[features.to(factors.device)] = number
        return Change(factors)


class Deviations:
    """How far the outputs are from their targets, each on its first use.

    Attributes:
        names: The weights whose output was seen.
        found: By block, |std - target| of its output.
    """

    def __init__(self) -> None:
        self.found: dict[object, float] = {}
        self.names: set[str] = set()

    def __call__(self, layer: Layer) -> None:
        """Note a layer."""
        self.names.add(layer.target.name)
        for key, features in layer.blocks():
            if key not in self.found:
                dead = not float(spread(layer.of(features))) > DEAD * layer.target.goal
                std = float(spread(layer.whole(features)))
                self.found[key] = 0.0 if dead else abs(std - layer.target.goal)

    @property
    def largest(self) -> float:
        """The largest one."""
        return max(self.found.values(), default=math.nan)


def factor(layer: Layer, features: Tensor | None, std: Tensor) -> Tensor:
    """The factor f for which f times a product, with the bias added, has the wanted std.

    It solves f^2 Var(product) + 2 f Cov(product, bias) + Var(bias) = std^2. A bias that varies by
    more than that among features leaves no room, and the product alone gets it.
    """
    goal = layer.target.goal
    if layer.added is not None:
        product, whole = layer.of(features).float(), layer.whole(features).float()
        bias, own = spread(whole - product).square(), std.square()
        both = (spread(whole).square() - own - bias) / 2
        if bool(bias < goal**2):
            return ((both.square() + own * (goal**2 - bias)).sqrt() - both) / own
    return goal / std


def spread(values: Tensor) -> Tensor:
    """Standard deviation of all values, in float32.

    Example:
        >>> round(float(spread(torch.tensor([1.0, 3.0]))), 6)
        1.0
    """
    flat = values.float().reshape(-1)
    mean, square = flat.mean(), torch.dot(flat, flat) / max(1, flat.numel())
    variance = square - mean.square()
    # Thirty times as fast on a CPU as `std`, and as exact unless the mean is all there is.
    return variance.sqrt() if bool(variance > 0.1 * square) else flat.std(correction=0)


@strategy(needs=("batch",), cost="1 forward, and 2 with backward to compare")
def lsuv(
    scale: Annotated[float, Range(1e-3, 1e3, log=True, search=(0.25, 4.0))] = 1.0,
    include_head: bool = False,
    residual: bool = False,
    accept: Accept = "better",
) -> Strategy:
    """Orthogonal, then each weight scaled in execution order to an output std of `scale`.

    One forward pass instead of the paper's two per layer, with the same result: layers that run
    later already see the scaled outputs. Query, key and value are scaled each by itself, fused or
    not. Dropout is off. A weight used several times is scaled on its first use; one whose output
    is constant is left as drawn, with a warning. Matrices inside PyTorch's recurrent kernels stay
    orthogonal: no output of theirs can be seen, and a weight that its parametrization scales
    (spectral norm) is left out; the report names both. Biases count as part of the output. In a
    `chain` it calibrates what is there.

    Unit variance is not trainability: in a deep tanh net it makes gradients explode. So the model
    is read before and after, and if it became worse the weights are those that were drawn.

    Args:
        scale: The target std, 1e-3 to 1e3.
        include_head: Whether output layers are scaled too.
        residual: Whether layers that end a residual branch aim at `scale / sqrt(branches)`, so that
            the sum of all branches has the variance of one. The paper has no such case.
        accept: `"better"` takes the result back if the model became worse, `"always"` keeps it.

    References:
        Mishkin & Matas (2015), algorithm 1, https://arxiv.org/abs/1511.06422

    Example:
        >>> from lightning_init import initialize_
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 2))
        >>> x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
        >>> plan = initialize_(model, "lsuv", seed=0, forward=lambda: model(x))
        >>> round(float(model[:3](x).detach().std(correction=0)), 4)
        1.0
    """

    def goal(info: ParamInfo) -> float:
        ends = residual and info.usage is not None and info.usage.ends_branch
        return scale / math.sqrt(info.usage.num_branches) if ends and info.usage else scale

    def calibrate(model: nn.Module, plan: Plan, forward: Forward) -> list[Calibration]:
        listed = targets(model, plan, include_head, goal)
        deviations = Deviations(), Deviations()
        shows = iter(deviations)

        def work() -> tuple[str, float, float, str]:
            unit = changed(forward, listed, Unit)
            if unit.dead:
                warnings.warn(
                    f"lsuv left {', '.join(unit.dead)} as drawn: the output on this batch is "
                    "constant",
                    stacklevel=2,
                )
            aim = "1" if scale == 1 and not residual else "target"
            passes = "1 forward to calibrate, 2 with backward to compare"
            return f"largest |std - {aim}|", math.nan, math.nan, passes

        found = gated(
            "lsuv", model, plan, lambda: shown(forward, listed, next(shows)), work, accept
        )
        before, after = deviations
        hidden = [target.name for target in listed if target.name not in after.names]
        unseen = f"no output of {few(hidden)} is seen: as drawn" if hidden else ""
        unseen = unseen if listed else NOTHING
        why = "; ".join(text for text in (found.why, unseen) if text)
        return [replace(found, before=before.largest, after=after.largest, why=why)]

    rule = Orthonormal(1.0, "LSUV")
    base = ByRole(weight=rule, embedding=tied_table)
    return Strategy(base, calibrate, on_top=lambda below: below)
