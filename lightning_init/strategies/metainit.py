"""MetaInit: the norm of each weight such that gradients change little along themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.params import ParamInfo
from lightning_init.strategies.budget import Budget
from lightning_init.strategies.calibration import Calibration
from lightning_init.strategies.chain import modifier
from lightning_init.strategies.gate import Accept, gated
from lightning_init.strategies.gradient import Loss, Scaling, scaling, twice_differentiable
from lightning_init.strategies.plan import Forward, Plan
from lightning_init.strategies.registry import Strategy, strategy

_SHRINK = 0.5  # a norm is at least this share of the one before, so it never reaches 0


def gradient_quotient(loss: Loss, value: Tensor, eps: float) -> Tensor:
    """Mean over all parameters of |(g - Hg) / (g + eps sign(g)) - 1|, with sign(0) = 1.

    That is |Hg + eps sign(g)| / (|g| + eps), written without the difference of near numbers.
    Parameters that the loss does not depend on do not count.

    Args:
        loss: Knows the parameters.
        value: What it returned.
        eps: Keeps the quotient finite, above 0.

    Returns:
        A scalar with a graph.
    """
    found = loss.gradient(value)
    pairs = [(p, g) for p, g in zip(loss.parameters, found, strict=True) if g is not None]
    half = _total([g.square().sum() / 2 for _, g in pairs])
    products = loss.gradients_again(half, [p for p, _ in pairs], create_graph=True)
    terms = []
    for (_, g), product in zip(pairs, products, strict=True):
        sign = torch.ones_like(g).masked_fill(g.detach() < 0, -1)
        product = torch.zeros_like(g) if product is None else product
        terms.append(((product + eps * sign).abs() / (sign * g + eps)).sum())
    return _total(terms) / sum(g.numel() for _, g in pairs)


def _total(terms: Sequence[Tensor]) -> Tensor:
    """The sum, of parts that may lie on several devices."""
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()


@strategy(needs=("loss",), nearest="lsuv", search=False, cost="500 x (1 forward + 3 backward)")
def metainit(
    steps: Annotated[int, Range(1, 1e6)] = 500,
    lr: Annotated[float, Range(1e-6, 10, log=True, search=(1e-2, 1))] = 0.1,
    momentum: Annotated[float, Range(0, 0.999, search=(0.5, 0.95))] = 0.9,
    eps: Annotated[float, Range(1e-12, 1, log=True, search=(1e-6, 1e-4))] = 1e-5,
    seconds: Annotated[float, Range(1e-3, 1e7, log=True)] = 3600.0,
    accept: Accept = "better",
) -> Strategy:
    """The norm of each matrix that minimizes mean |(g - Hg)/(g + eps sign(g)) - 1|: signSGD.

    g is the gradient of the loss, H its Hessian. Directions stay, norms n move by signSGD with
    momentum: m <- momentum m - lr sign(dGQ/dn), n <- n + m. It starts from what a `chain` has
    drawn before, alone from the table of `auto`, and ends where the quotient was smallest.

    A small quotient is not trainability: small weights make Hg small, too. In tanh nets of ten
    layers and unit gain 300 steps brought it from 9 to 0.3, and what 150 steps of training reach
    on digits from 0.95 to 0.45; `accept` takes that back.

    The paper draws N(0, 1) inputs and random labels; here it is the loss and the batch of
    `forward`, with the same random numbers (dropout) in each step, without autocast, and in the
    mode that the model is in, where known code switches to eval. To do as the paper does, let
    `forward` draw inputs and labels: it draws the same ones in each step. Unlike in the paper's
    code a norm at most halves in a step, so none passes 0. Matrices of zeros have no direction
    and stay; frozen ones are left out.

    Args:
        steps: Steps of signSGD, 1 to 1e6.
        lr: How far a norm moves in a step, 1e-6 to 10.
        momentum: Share of the last move that is added, 0 to 0.999.
        eps: In the quotient, 1e-12 to 1.
        seconds: After so many no step is started, 1e-3 to 1e7.
        accept: `better` takes the result back if the model became worse; `always` keeps it.

    References:
        Dauphin & Schoenholz (2019), MetaInit, NeurIPS 32, equation 1 and appendix,
        https://papers.nips.cc/paper/9427-metainit-initializing-learning-by-learning-to-initialize

    Example:
        >>> from lightning_init import InitSpec, initialize_
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
        >>> x, y = torch.eye(4), torch.tensor([0, 1, 2, 0])
        >>> loss = lambda: nn.functional.cross_entropy(model(x), y)
        >>> plan = initialize_(model, InitSpec("metainit", {"steps": 20}), seed=0, forward=loss)
        >>> plan.calibrations[0].after < plan.calibrations[0].before
        True
    """

    def calibrate(model: nn.Module, plan: Plan, forward: Forward) -> list[Calibration]:
        def work() -> tuple[str, float, float, str]:
            loss = Loss("metainit", model, forward)
            with (
                twice_differentiable(model),
                scaling("metainit", model, plan, _is_matrix, "matrices and kernels") as chosen,
                Budget("metainit", steps, seconds) as budget,
            ):
                before, after = _minimize(loss, chosen, budget, lr, momentum, eps)
            passes = f"{budget}, each 1 forward + 3 backward"
            return "gradient quotient", before, after, passes

        return [gated("metainit", model, plan, forward, work, accept)]

    return modifier(lambda below: below, calibrate_=calibrate)


def _is_matrix(info: ParamInfo) -> bool:
    return len(info.shape) >= 2


def _minimize(
    loss: Loss, chosen: Scaling, budget: Budget, lr: float, momentum: float, eps: float
) -> tuple[float, float]:
    """Move the norms; the quotient before and the smallest one, whose norms are written."""
    first = [float(drawn.float().norm()) for drawn in chosen.drawn]
    norms, moves = list(first), [0.0] * len(first)
    before = smallest = math.nan
    kept = list(first)
    for step in budget:
        quotient = gradient_quotient(loss, loss(), eps)
        value = float(quotient.detach())
        if step == 0:
            loss.check_finite(gradient_quotient=value)
            before = smallest = value
        if not math.isfinite(value):
            break
        if value < smallest:
            smallest, kept = value, list(norms)
        budget.said = f"gradient quotient {before:.3g} -> {smallest:.3g}"
        slopes = chosen.slopes(loss.gradients(quotient, chosen.parameters))
        del quotient  # and its graph
        for i, slope in enumerate(slopes):
            # The factor is norm / first: its derivative has the sign of the norm's.
            moves[i] = momentum * moves[i] - lr * _sign(slope)
            moved = max(norms[i] + moves[i], _SHRINK * norms[i])
            norms[i], moves[i] = moved, moved - norms[i]
        chosen.write(norm / one for norm, one in zip(norms, first, strict=True))
    else:
        value = float(gradient_quotient(loss, loss(), eps).detach())
        if value < smallest:
            smallest, kept = value, list(norms)
    chosen.write(norm / one for norm, one in zip(kept, first, strict=True))
    return before, smallest


def _sign(value: float) -> float:
    return math.copysign(1.0, value) if value else 0.0
