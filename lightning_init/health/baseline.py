"""The rule on a deep model beside a model with one hidden layer, trained on the same batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import Readings
from lightning_init.health.evidence import ranked
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.registry import Share, detector
from lightning_init.health.trend import backward_chain, growth

_TAIL = 5  # the last fifth of the steps, whose mean loss is compared
_LARGER = 'a larger init that keeps the variance, InitCallback("orthogonal") or "lsuv"'


@detector(order=70)
def worse_than_shallow(
    readings: Readings,
    *,
    limit: Share = 0.5,
    error: Share = 0.1,
    learned: Share = 0.1,
    steps: Annotated[int, Range(2, 100000)] = 20,
    sure: Annotated[int, Range(2, 100000)] = 50,
) -> Iterator[Finding]:
    """A deep model that learns less than one hidden layer on the same batches.

    Args:
        readings: What was measured.
        limit: Fraction of the shallow model's progress below which it is a warning.
        error: Fraction below which it is an error.
        learned: Fraction of its first loss that the shallow model must have lost: else it says
            nothing.
        steps: Steps that both must have trained.
        sure: Steps that an error needs: a schedule may warm up.
    """
    twin = readings.baseline
    if twin is None:
        return
    common = sorted(twin.deep.keys() & twin.shallow.keys())
    if len(common) < steps:
        return
    tail = common[-max(1, len(common) // _TAIL) :]
    start = twin.deep[common[0]]
    deep, shallow = _mean(twin.deep, tail), _mean(twin.shallow, tail)
    # Each may start anywhere above chance; progress is counted from where the better one starts.
    start = min(start, twin.shallow[common[0]])
    gain = start - shallow
    if not gain > learned * abs(start):
        return
    share = (start - deep) / gain if math.isfinite(deep) else -math.inf
    if share >= limit:
        return
    severity: Severity = "error" if share < error and len(common) >= sure else "warning"
    message = (
        f"after {len(common)} steps the loss is {deep:.4g}, but {shallow:.4g} with one hidden "
        f"layer of {twin.width} units on the same batches: the model has learned "
        f"{max(0.0, share):.0%} of what that has (limit {limit:.0%})"
    )
    yield found(
        "worse_than_shallow", severity, "loss", common[-1], share,
        error if severity == "error" else limit, message,
        ranked(readings, *_causes(readings, start, deep)),
        "He et al. (2016), https://arxiv.org/abs/1512.03385: degradation, deeper and yet worse",
    )  # fmt: skip


def _causes(readings: Readings, start: float, deep: float) -> Iterator[Cause]:
    twin = readings.baseline
    rate = Cause(
        "learning rate",
        "one hidden layer learns at it, but a deep model stands less: the loss has risen"
        if not deep <= start
        else f"{_rate(twin.lr if twin else math.nan)}suits one hidden layer, maybe not this depth",
        "`lightning-init search --config <your config>` tunes it together with the init; a third "
        "of it, a warm-up or Trainer(gradient_clip_val=1.0)"
        if not deep <= start
        else "`lightning-init search --config <your config>` tunes it together with the init",
    )
    if not deep <= 1.1 * start:
        yield rate
    chain = backward_chain(readings.steps[0]) if readings.steps else []
    slope = growth([norm for _, norm in chain]) if len(chain) >= 3 else math.nan
    span = slope ** (len(chain) - 1) if chain else math.nan
    text = "the data, the loss and the learning rate teach one hidden layer, but not this depth"
    if span < 1e-2:
        text = f"gradients shrink to {span:.2g} on the way from {chain[0][0]} to {chain[-1][0]}"
    elif span > 1e2:
        text = f"gradients grow x{span:.2g} on the way from {chain[0][0]} to {chain[-1][0]}"
    larger = _LARGER if not span > 1e2 else 'a smaller init, InitCallback("auto") or "orthogonal"'
    yield Cause("init scale", text, larger)
    yield Cause(
        "depth",
        "what a shallow model learns is lost on the way through so many layers",
        "a better parametrization: residual connections, norm layers, or "
        'add_branch_scales_ with InitCallback("fixup")',
    )
    yield rate


def _mean(losses: Mapping[int, float], steps: list[int]) -> float:
    return sum(losses[step] for step in steps) / len(steps)


def _rate(lr: float) -> str:
    return f"lr={lr:.3g} " if math.isfinite(lr) else "it "
