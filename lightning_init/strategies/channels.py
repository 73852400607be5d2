"""Every output channel at mean 0 and unit variance on one batch, folded into weight and bias."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.params import ParamInfo, Role
from lightning_init.strategies.calibration import Calibration
from lightning_init.strategies.distributions import Distribution, Normal
from lightning_init.strategies.gate import Accept, gated
from lightning_init.strategies.initializers import ByRole
from lightning_init.strategies.one_pass import Change, Layer, lies_in
from lightning_init.strategies.passes import NOTHING, changed, few, shown, targets
from lightning_init.strategies.plan import Forward, Plan
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.variance import tied_table

_CONSTANT = 1e-6  # a channel whose std is below that times its mean, or the target, is constant


class Channels:
    """Normalizes each output channel of a weight on its first use.

    Args:
        biases: The biases that may take over the means.

    Attributes:
        constant: How many channels are constant, and left alone.
        unbiased: Names of the weights without a bias that could take the mean.
        mixed: Names of the weights whose channels do not lie along one dimension.
        off: By weight, how far means and stds are from 0 and the target.
    """

    def __init__(self, biases: Iterable[Tensor]) -> None:
        self.biases = list(biases)
        self.constant = 0
        self.unbiased: dict[str, None] = {}
        self.mixed: dict[str, None] = {}
        self.off: dict[object, float] = {}

    def __call__(self, layer: Layer) -> Change | None:
        """What becomes of a layer."""
        if layer.axis is None or layer.rows is None:
            self.mixed[layer.target.name] = None
            return None
        key = (id(layer.target.tensor), *layer.rows[[0, -1]].tolist())
        if key in self.off:
            return None
        goal, channels = layer.target.goal, layer.product.shape[layer.feature]
        others = [d for d in range(layer.product.ndim) if d != layer.feature % layer.product.ndim]
        if not others:  # a single example is constant
            others, values = [1], layer.product.float()[:, None]
        else:
            values = layer.product.float()
        centered = values - (mean := values.mean(others, keepdim=True))
        std, mean = centered.square().mean(others).sqrt(), mean.flatten()
        alive = std > _CONSTANT * torch.maximum(mean.abs(), torch.full_like(mean, goal))
        bias = layer.bias
        if bias is None or not self._takes(bias, channels):
            self.unbiased[layer.target.name] = None
            bias = None
        self.constant += channels - int(alive.sum())
        found = (std - goal).abs()
        if bias is not None:
            found = torch.maximum(found, (mean + bias.float()).abs())
        self.off[key] = float(found.where(alive, torch.zeros_like(found)).max())
        factor = torch.where(alive, goal / std, torch.ones_like(std))
        if bias is None:
            return Change(factor)
        return Change(factor, torch.where(alive, -mean * factor, bias.float()))

    def _takes(self, bias: Tensor, channels: int) -> bool:
        return bias.shape == (channels,) and any(lies_in(bias, own) for own in self.biases)

    @property
    def largest(self) -> float:
        """The largest deviation."""
        return max(self.off.values(), default=math.nan)

    @property
    def left(self) -> str:
        """What was left alone, in words."""
        said = []
        if self.unbiased:
            said.append(f"no bias takes the means of {few(self.unbiased)}: only the std")
        if self.mixed:
            said.append(f"{few(self.mixed)} as drawn: channels not along one dimension")
        if self.constant:
            said.append(f"{self.constant} constant channels as drawn")
        return "; ".join(said)


def _direction(info: ParamInfo) -> Distribution:  # noqa: ARG001
    return Normal(0.05, reason="a direction, whose length the batch decides")


@strategy(needs=("batch",), cost="1 forward, and 2 with backward to compare")
def channel_norm(
    scale: Annotated[float, Range(1e-3, 1e3, log=True, search=(0.25, 4.0))] = 1.0,
    include_head: bool = False,
    accept: Accept = "better",
) -> Strategy:
    """N(0, 0.05^2), then per output channel w / std(t) and b = -mean(t) / std(t) on one batch.

    Each channel t of a layer's output then has mean 0 and std `scale` on that batch, as if batch
    norm had been folded in; one forward pass, since layers that run later already see it. With
    `weight_norm`, g takes the factor up. A weight without a bias gets the std only, which the
    report says; constant channels stay as drawn, and so do kernels of grouped transposed
    convolutions and matrices inside PyTorch's recurrent kernels. Dropout is off. In a `chain` it
    calibrates what is there. The paper normalizes every layer, ours not the output layer by
    default: its bias and scale are those of the answer.

    Args:
        scale: The target std, 1e-3 to 1e3.
        include_head: Whether output layers are normalized too.
        accept: `"better"` takes the result back if the model became worse, `"always"` keeps it.

    References:
        Salimans & Kingma (2016), section 3, https://arxiv.org/abs/1602.07868; Krahenbuhl et al.
        (2015), section 3.1, https://arxiv.org/abs/1511.06856, whose within-layer step is the same

    Example:
        >>> from lightning_init import initialize_
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 2))
        >>> x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
        >>> plan = initialize_(model, "channel_norm", seed=0, forward=lambda: model(x))
        >>> out = model[:3](x).detach()
        >>> bool((out.mean(0).abs() < 1e-6).all() and (out.std(0, correction=0) - 1 < 1e-5).all())
        True
    """

    def calibrate(model: nn.Module, plan: Plan, forward: Forward) -> list[Calibration]:
        listed = targets(model, plan, include_head, lambda info: scale)  # noqa: ARG005
        own = {e.info.name for e in plan if e.written and e.info.role is Role.BIAS}
        biases = [tensor for names, tensor in named_tensors(model) if names[0] in own]
        readings = Channels(biases), Channels(biases)
        shows = iter(readings)

        def work() -> tuple[str, float, float, str]:
            changed(forward, listed, lambda: Channels(biases))
            passes = "1 forward to calibrate, 2 with backward to compare"
            aim = f"{scale:g}"
            return f"largest |mean| or |std - {aim}| of a channel", math.nan, math.nan, passes

        found = gated(
            "channel_norm", model, plan, lambda: shown(forward, listed, next(shows)), work, accept
        )
        before, after = readings
        left = (after.left if found.accepted else "") if listed else NOTHING
        why = "; ".join(text for text in (found.why, left) if text)
        return [replace(found, before=before.largest, after=after.largest, why=why)]

    base = ByRole(weight=_direction, embedding=tied_table)
    return Strategy(base, calibrate, on_top=lambda below: below)
