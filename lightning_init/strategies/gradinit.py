"""GradInit: the scale of each tensor such that the first training step ends low."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

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

Optimizer = Literal["sgd", "adam"]


@strategy(
    needs=("loss",),
    nearest="lsuv",
    search=False,
    cost="390 x (1 or 2 forward + 2 backward)",
)
def gradinit(
    steps: Annotated[int, Range(1, 1e6)] = 390,
    lr: Annotated[float, Range(1e-6, 1, log=True, search=(1e-3, 1e-1))] = 0.01,
    optimizer: Optimizer = "sgd",
    eta: Annotated[float, Range(1e-8, 10, log=True, search=(1e-3, 1))] = 0.1,
    gamma: Annotated[float, Range(1e-6, 1e9, log=True, search=(0.1, 10))] = 1.0,
    min_scale: Annotated[float, Range(1e-6, 1, log=True, search=(1e-3, 0.1))] = 0.01,
    grad_clip: Annotated[float, Range(1e-6, 1e9, log=True, search=(0.1, 10))] = 1.0,
    seconds: Annotated[float, Range(1e-3, 1e7, log=True)] = 3600.0,
    accept: Accept = "better",
) -> Strategy:
    """A factor a >= min_scale on each tensor that minimizes L(a w - eta A(g)) where |g| <= gamma.

    A(g) is the first step of training: g / |g|_2 for SGD, sign(g) for Adam, and |g| the 2-norm
    (SGD) or the 1-norm (Adam). Where |g| > gamma, Adam (betas 0.9 and 0.999) moves the factors
    down d|g|/da; elsewhere down dL/da, with A(g) held fixed as in the authors' code. It starts
    from what a `chain` has drawn before, alone from the table of `auto`, and ends at the factors
    that were best: the smallest loss after the step where |g| <= gamma, else the smallest |g|.

    The paper evaluates the step on a batch that shares half of its samples with the one of g.
    `forward` decides: if it runs another batch in each call, the step is evaluated on another one,
    and what is best is as noisy as they are. Random numbers (dropout) are the same in each call,
    autocast is off, and the model stays in its mode.

    As in the paper the objective is L, where the authors' code has L / eta: that matters for
    `grad_clip` alone. As there, each branch has moments of its own. Every tensor that the plan
    draws counts, biases and norms too; zeros stay zero whatever the factor, and frozen ones are
    left out. It does not beat a good initialization; it rescues where none is known.

    Args:
        steps: Steps of Adam on the factors, 1 to 1e6.
        lr: Its learning rate, 1e-6 to 1; the authors search 1e-3 to 0.1.
        optimizer: Who will take the first step, `sgd` or `adam`.
        eta: Length of that step, 1e-8 to 10; for `adam` about its learning rate (1e-3).
        gamma: The largest gradient norm, 1e-6 to 1e9; a 1-norm wants far more than the default.
        min_scale: The smallest factor, 1e-6 to 1; the authors' code lets biases go to 0.
        grad_clip: Derivatives are clipped to +- this, 1e-6 to 1e9.
        seconds: After so many no step is started, 1e-3 to 1e7.
        accept: `better` takes the result back if the model became worse; `always` keeps it.

    References:
        Zhu et al. (2021), algorithm 1, https://arxiv.org/abs/2102.08098

    Example:
        >>> from lightning_init import InitSpec, initialize_
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> x, y = torch.eye(4), torch.tensor([0, 1, 2, 0])
        >>> loss = lambda: nn.functional.cross_entropy(model(x), y)
        >>> plan = initialize_(model, InitSpec("gradinit", {"steps": 20}), seed=0, forward=loss)
        >>> plan.calibrations[0].after < plan.calibrations[0].before
        True
    """

    def calibrate(model: nn.Module, plan: Plan, forward: Forward) -> list[Calibration]:
        def work() -> tuple[str, float, float, str]:
            loss = Loss("gradinit", model, forward)
            with (
                twice_differentiable(model),
                scaling("gradinit", model, plan, _any, "tensors") as chosen,
                Budget("gradinit", steps, seconds) as budget,
            ):
                start = FirstStep(loss, chosen, optimizer, eta)
                search = _Search(start, gamma, lr, min_scale, grad_clip)
                before, after = search.run(budget)
            passes = f"{budget}, {start.passes}, {search.constrained} steps beyond gamma"
            if after.norm > gamma:
                return f"gradient norm (wanted: {gamma:g})", before.norm, after.norm, passes
            return f"loss after one step of {optimizer}", before.loss, after.loss, passes

        return [gated("gradinit", model, plan, forward, work, accept)]

    return modifier(lambda below: below, calibrate_=calibrate)


def _any(info: ParamInfo) -> bool:
    del info
    return True


@dataclass(frozen=True, slots=True)
class Point:
    """What was found for some factors.

    Attributes:
        norm: The gradient norm.
        loss: The loss after the first step, NaN if it was not evaluated.
    """

    norm: float
    loss: float = math.nan

    def better(self, other: Point, gamma: float) -> bool:
        """Whether it is preferable: a bounded gradient first, then a small loss."""
        if self.norm <= gamma and other.norm <= gamma:
            return self.loss < other.loss or math.isnan(other.loss)
        return self.norm < other.norm


class FirstStep:
    """The first step of training, as a function of the factors.

    Args:
        loss: The loss.
        chosen: The tensors that are scaled; the step moves all parameters.
        optimizer: Who takes it.
        eta: Its length.
    """

    def __init__(self, loss: Loss, chosen: Scaling, optimizer: Optimizer, eta: float) -> None:
        self.loss, self.chosen, self.optimizer, self.eta = loss, chosen, optimizer, eta
        self.forwards = self.backwards = 0

    @property
    def passes(self) -> str:
        """What was run."""
        return f"{self.forwards} forward, {self.backwards} backward"

    def gradient(self) -> tuple[Tensor, list[Tensor | None]]:
        """The gradient and its norm, with their graph."""
        value = self.loss()
        found = self.loss.gradient(value)
        self.forwards, self.backwards = self.forwards + 1, self.backwards + 1
        power = 1 if self.optimizer == "adam" else 2
        sums = [g.abs().pow(power).sum().to(value.device) for g in found if g is not None]
        total = torch.stack(sums).sum()
        return total if power == 1 else total.sqrt(), found

    def norm_slopes(self, norm: Tensor) -> list[float]:
        """Derivatives of the gradient norm with respect to the factors."""
        self.backwards += 1
        return self.chosen.slopes(self.loss.gradients_again(norm, self.chosen.parameters))

    def taken(
        self, gradient: Sequence[Tensor | None], norm: float, *, slopes: bool = True
    ) -> tuple[float, list[float]]:
        """The loss after the step, and its derivatives with respect to the factors."""
        parameters = self.loss.parameters
        kept = [p.detach().clone() for p in parameters]
        self.forwards, self.backwards = self.forwards + 1, self.backwards + slopes
        try:
            # Through `.data`: what comes back unchanged does not count as written.
            for parameter, g in zip(parameters, gradient, strict=True):
                if g is not None:
                    parameter.data.sub_(self.eta * self._direction(g.detach(), norm))
            value = self.loss()
            if not slopes:
                return float(value.detach()), []
            found = self.loss.gradients(value, self.chosen.parameters)
        finally:
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.data.copy_(before)
        return float(value.detach()), self.chosen.slopes(found)

    def _direction(self, gradient: Tensor, norm: float) -> Tensor:
        if self.optimizer == "adam":
            return gradient.sign()
        return gradient / norm if norm else gradient


@dataclass
class _Adam:
    """Adam on a few numbers."""

    first: list[float]
    second: list[float]
    steps: int = 0

    def moves(self, slopes: Sequence[float], lr: float) -> list[float]:
        self.steps += 1
        self.first = [0.9 * m + 0.1 * s for m, s in zip(self.first, slopes, strict=True)]
        self.second = [0.999 * v + 0.001 * s * s for v, s in zip(self.second, slopes, strict=True)]
        one, two = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        return [
            -lr * (m / one) / (math.sqrt(v / two) + 1e-8)
            for m, v in zip(self.first, self.second, strict=True)
        ]


@dataclass
class _Search:
    """The search for the factors."""

    start: FirstStep
    gamma: float
    lr: float
    min_scale: float
    grad_clip: float
    constrained: int = field(default=0, init=False)

    def run(self, budget: Budget) -> tuple[Point, Point]:
        """The point that was found first and the best one, whose factors are written."""
        chosen = self.start.chosen
        factors = kept = [1.0] * len(chosen.parameters)
        adams = [_Adam([0.0] * len(factors), [0.0] * len(factors)) for _ in range(2)]
        first = best = Point(math.nan)
        for step in budget:
            point, slopes = self._look(first=step == 0)
            if step == 0:
                first = best = point
            if not all(map(math.isfinite, (point.norm, *slopes))):
                break
            if point.better(best, self.gamma):
                best, kept = point, factors
            budget.said = f"gradient norm {point.norm:.3g}, loss after a step {point.loss:.3g}"
            beyond = point.norm > self.gamma
            self.constrained += beyond
            clipped = [max(-self.grad_clip, min(s, self.grad_clip)) for s in slopes]
            moves = adams[beyond].moves(clipped, self.lr)
            factors = [max(f + m, self.min_scale) for f, m in zip(factors, moves, strict=True)]
            chosen.write(factors)
        else:
            point, _ = self._look(slopes=False)
            if point.better(best, self.gamma):
                best, kept = point, factors
        chosen.write(kept)
        return first, best

    def _look(self, *, first: bool = False, slopes: bool = True) -> tuple[Point, list[float]]:
        """The point at the factors that are written, and the slopes of what is to fall there."""
        norm, found = self.start.gradient()
        size = float(norm.detach())
        gradient = [None if g is None else g.detach() for g in found]
        if first:
            self.start.loss.check_finite(gradient_norm=size)
        if size <= self.gamma:
            del norm, found  # and their graph
            loss, down = self.start.taken(gradient, size, slopes=slopes)
            return Point(size, loss), down
        down = self.start.norm_slopes(norm) if slopes else []
        del norm, found
        # The search does not need it there, but what it reports is the loss before and after.
        loss = self.start.taken(gradient, size, slopes=False)[0] if first else math.nan
        return Point(size, loss), down
