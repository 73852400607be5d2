"""The rule on attention: a softmax that looks at one key only passes no gradient to its logits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.readings import AttentionReading, Readings
from lightning_init.health.drawn import falls
from lightning_init.health.evidence import ranked
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.places import and_more
from lightning_init.health.registry import Factor, Share, detector


@detector(
    order=37,
    explains=(
        *("frozen_layers", "uneven_gradients", "zero_gradients", "loss_flat", "loss_oscillates"),
        "worse_than_shallow",
    ),
)
def saturated_attention(
    readings: Readings,
    *,
    entropy: Share = 0.05,
    note: Share = 0.3,
    logits: Factor = 50.0,
    grows: Factor = 4.0,
    keys: Annotated[float, Range(2.0, 1e6)] = 4.0,
) -> Iterator[Finding]:
    """Attention whose entropy is near 0 at the start, or whose logits are huge and still grow.

    It is an error if it is saturated at two steps that were read and the loss does not fall.

    Args:
        readings: What was measured.
        entropy: Entropy over ln of the visible keys below which attention is saturated.
        note: Entropy at the start below which it is an info.
        logits: Largest magnitude of a logit above which growth counts.
        grows: Factor over its first value by which the largest logit must have grown to count.
        keys: Visible keys that there must be.
    """
    first: dict[str, AttentionReading] = {}
    hits: list[tuple[int, list[AttentionReading], str]] = []
    for reading in readings.steps:
        seen = [one for one in reading.attentions if one.keys >= keys]
        sharp = [one for one in seen if one.entropy < entropy]
        more = [
            one
            for one in seen
            if one.name in first
            and one.logit_max > logits
            and one.logit_max > grows * first[one.name].logit_max
        ]
        for one in seen:
            first.setdefault(one.name, one)
        if sharp:
            hits.append((reading.step, sharp, ""))
        elif more:
            hits.append((reading.step, more, f", {_times(more[0], first)} its first"))
    if not hits:
        start = [one for one in first.values() if one.entropy < note and math.isfinite(one.entropy)]
        if start and readings.steps[0].step == 0:
            yield _finding(readings, "info", 0, start, note, "")
        return
    step, where, how = hits[0]
    severity: Severity = "error" if len(hits) > 1 and falls(readings) is False else "warning"
    yield _finding(readings, severity, step, where, entropy, how)


def _times(one: AttentionReading, first: dict[str, AttentionReading]) -> str:
    return f"{one.logit_max / first[one.name].logit_max:.3g} times"


def _finding(
    readings: Readings,
    severity: Severity,
    step: int,
    where: list[AttentionReading],
    limit: float,
    how: str,
) -> Finding:
    one = where[0]
    usual = Cause(
        "attention scale",
        f"logits with std {one.logit_std:.3g}: queries and keys are too large, or the logits are "
        "not divided by sqrt(head width)",
        'smaller query and key weights: InitCallback("auto"); scaled_dot_product_attention, '
        "which divides; a norm on queries and keys",
    )
    rate = Cause(
        "learning rate",
        f"logits grew to {one.logit_max:.3g} by step {step}",
        "warm-up, a 3 times smaller learning rate, or a norm on queries and keys",
    )
    return found(
        "saturated_attention", severity, one.name, step, one.entropy, limit,
        f"attention in {and_more([one.name for one in where], 'place')} has entropy "
        f"{one.entropy:.3g} of ln(keys) (limit {limit:g}), largest logit {one.logit_max:.3g}{how}",
        ranked(readings, *((usual, rate) if step == 0 else (rate, usual))),
        "Zhai et al. (2023), https://arxiv.org/abs/2303.06296",
    )  # fmt: skip
