"""The gate behind every calibration: a model that became worse gets its weights back.

A calibration reaches its own objective; that does not make a model trainable. LSUV sets every
output of a deep tanh net to unit variance, and the gradient explodes. So the model is read before
and after, by one forward and one backward pass each, and what counts is the whole depth, in
e-folds (ln of a ratio), not the decimals of single layers.

How far a model is from trainable is the sum of two numbers:

* The depth: |ln| of the first layer over the last in gradient times output, which is how the
  gradient of the weights changes through the depth. Outputs or gradients alone count by what
  exceeds ln(layers): those that fade as a power of the depth do no harm, as in a tanh net of
  orthogonal matrices, where both go as 1/sqrt(depth); those that vanish exponentially do. The
  larger one counts.
* The loss: ln(1 + loss), where `forward` returns one. Losses far below 1 are those of small
  targets, and say nothing of a start.

A model became worse if the sum grew by more than 1, if it had a gradient and lost it, or if it is
not finite. Measured on 256 digits, width 64, the depth's number before and after:

| model                       | calibration | before | after |            |
|-----------------------------|-------------|--------|-------|------------|
| tanh, orthogonal, 10 layers | LSUV        | 0.1    | 0.9   | accepted   |
| same, 50 layers             | LSUV        | 0.1    | 4.2   | taken back |
| same, 100 layers            | LSUV        | 0.1    | 8.2   | taken back |
| ReLU, orthogonal, 40 layers | LSUV        | 10     | 0.1   | accepted   |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.preserve import keep_rng
from lightning_init.strategies.calibration import Calibration
from lightning_init.strategies.depth import Reading, read
from lightning_init.strategies.plan import Forward, Plan

Accept = Literal["better", "always"]
Work = Callable[[], tuple[str, float, float, str]]

_WORSE = 1.0  # e-folds by which a model may seem worse: chance, and what ten tanh layers lose


def gated(
    scheme: str, model: nn.Module, plan: Plan, forward: Forward, work: Work, accept: Accept
) -> Calibration:
    """Run a calibration; put the written weights back if the model became worse.

    Args:
        scheme: Who calibrates.
        model: The model, inside `preserved`: nothing but the weights that the plan writes stays
            changed.
        plan: Its plan.
        forward: A call without arguments that runs the model once. If it returns a scalar, that is
            the loss; otherwise a fixed random direction is sent back through what it returns.
        work: Changes weights, and returns its objective in words, the objective before and after,
            and its passes in words.
        accept: `"better"` takes the result back if the model became worse (see this module), and
            `"always"` never does.

    Returns:
        What was reached and what was read.

    Example:
        >>> from lightning_init import make_plan
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> plan, x = make_plan(net, "orthogonal"), torch.ones(2, 4)
        >>> def ruin():
        ...     net[0].weight.data.fill_(torch.nan)
        ...     return "mean weight", 0.0, torch.nan, ""
        >>> print(gated("ruin", net, plan, lambda: net(x), ruin, "better").why)
        the model is not finite any more
        >>> bool(net[0].weight.isfinite().all())
        True
    """
    written = {entry.info.name for entry in plan if entry.written}
    kept = [
        (tensor, tensor.detach().clone())
        for names, tensor in named_tensors(model)
        if names[0] in written and accept == "better"
    ]
    enough = _enough(model, plan)
    before = read(model, forward, enough)
    same_draws = keep_rng()  # what is random in a forward pass is so alike in all of them
    objective, start, end, passes = work()
    same_draws()
    after = read(model, forward, enough)
    why = worse(before, after)
    accepted = accept == "always" or not why
    if not accepted:
        with torch.no_grad():
            for tensor, value in kept:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
    elif why:
        why = f"kept although {why}"
    return Calibration(scheme, objective, start, end, _pairs(before, after), accepted, why, passes)


def worse(before: Reading, after: Reading) -> str:
    """Why a model is worse than it was, `""` if it is not.

    Example:
        >>> fine = Reading(-1.6, -1.5, 49, 1.0, 2.4, True, True)
        >>> worse(fine, Reading(0.0, 4.2, 49, 1.0, 2.4, True, True))
        "the weights' gradient grows by e^4.2 from the last layer to the first, it was e^0.1"
        >>> worse(Reading(-14.0, -14.0, 39, 1.0, 2.3, True, True), fine)
        ''
    """
    if not after.finite:
        return f"the model is {'not finite any more' if before.finite else 'still not finite'}"
    if not before.finite:
        return ""
    if before.gradient and not after.gradient:
        return "no layer has a gradient any more"
    depth = _change(before.distance, after.distance)
    losses = 0.0
    if not math.isnan(before.loss) and not math.isnan(after.loss):
        losses = math.log1p(max(after.loss, 0.0)) - math.log1p(max(before.loss, 0.0))
    if not depth + losses > _WORSE:
        return ""
    if losses > depth:
        return f"the loss is {after.loss:.3g}, it was {before.loss:.3g}"
    if abs(after.weights) >= after.distance:
        return (
            f"the weights' gradient grows by e^{after.weights:.2g} from the last layer to the "
            f"first, it was e^{before.weights:.2g}"
        )
    return (
        f"outputs grow by e^{after.forward:.2g} from the first layer to the last, it was "
        f"e^{before.forward:.2g}, and the gradient back by e^{after.backward:.2g}"
    )


def _enough(model: nn.Module, plan: Plan) -> list[Tensor] | None:
    """Parameters on whose gradients' way lies the output of every layer: half the work of all."""
    depths = {e.info.names: e.info.usage.depth for e in plan if e.info.usage is not None}
    if not plan.traced:
        return None
    return [t for names, t in named_tensors(model) if t.ndim <= 1 or depths.get(names, 0) <= 1]


def _pairs(before: Reading, after: Reading) -> dict[str, tuple[float, float]]:
    """What a calibration reports; what neither reading shows is left out."""
    pairs = {
        "chi": (before.chi, after.chi),
        "std per layer": (before.growth, after.growth),
        "largest std": (before.largest, after.largest),
        "loss": (before.loss, after.loss),
    }
    return {name: pair for name, pair in pairs.items() if not all(map(math.isnan, pair))}


def _change(before: float, after: float) -> float:
    return 0.0 if before == after else after - before
