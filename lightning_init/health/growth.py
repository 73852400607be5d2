"""Rules on depth: signals that grow or shrink geometrically from layer to layer.

Growth per layer is scale-free: the absolute size of outputs and gradients says little, since
residual branches, norm layers and loss reductions set it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from lightning_init.architecture.readings import LayerReading, Readings, StepReading
from lightning_init.health.findings import Finding
from lightning_init.health.registry import Factor, Share, detector

_SEARCH = "`lightning-init search --config <your config>` compares schemes on your data"


@detector(order=20)
def forward_growth(
    readings: Readings,
    *,
    shrink: Share = 0.5,
    grow: Factor = 2.5,
    total: Factor = 100.0,
    extreme: Factor = 1e5,
    jump: Factor = 20.0,
) -> Iterator[Finding]:
    """Outputs that grow or shrink geometrically through the depth, or jump at one layer.

    Args:
        readings: What was measured.
        shrink: Factor per layer below which outputs vanish.
        grow: Factor per layer above which they explode.
        total: Factor over the whole depth that must be exceeded too.
        extreme: Factor over the whole depth that suffices alone.
        jump: Factor between two neighbours.
    """
    for reading in readings.steps:
        chain = _chain(reading, lambda layer: math.nan if layer.rescaled else layer.rms)
        if len(chain) < 4:
            continue
        slope = _growth([rms for _, rms in chain])
        span = slope ** (len(chain) - 1)
        apart = max(span, 1 / span) if span > 0 else math.inf
        grows = apart > extreme or (apart > total and not shrink <= slope <= grow)
        jumps = [
            (before, name, high / low)
            for (before, low), (name, high) in pairwise(chain)
            if not 1 / jump <= high / low <= jump
        ]
        # One layer that is off tilts the trend of all: then it is the place, not the depth.
        if jumps and (not grows or 2 * len(jumps) < len(chain)):
            yield _jump_finding(reading.step, *jumps[0], jump)
            return
        if grows:
            yield _growth_finding(reading.step, chain, slope, span, shrink, grow)
            return


def _growth_finding(
    step: int, chain: list[tuple[str, float]], slope: float, span: float, low: float, high: float
) -> Finding:
    exploding = slope > 1
    first, last = chain[0][0], chain[-1][0]
    what = "explode" if exploding else "vanish"
    cause = (
        "weights too large for the activation (gain above what keeps the variance)"
        if exploding
        else "weights too small for the activation: PyTorch's default for Linear and Conv keeps a "
        "third of the variance per layer, a sixth with ReLU"
    )
    fix = (
        'InitCallback("auto") (scales by 1/sqrt(fan_in)), for residual nets "gpt2" or "auto"'
        if exploding
        else 'InitCallback("orthogonal") for tanh, InitCallback("kaiming_normal") for ReLU, or '
        '"lsuv"'
    )
    return Finding(
        "forward_growth", "error", first if exploding else last, step, slope,
        high if exploding else low,
        f"outputs {what}: x{slope:.3g} per layer over {len(chain)} layers from {first} to {last}, "
        f"x{span:.2g} in all (sane: x{low:g} to x{high:g} per layer)",
        f"{cause}; or inputs far from N(0, 1)", f"{fix}; {_SEARCH}",
        "Schoenholz et al. (2017), https://arxiv.org/abs/1611.01232",
    )  # fmt: skip


def _jump_finding(step: int, before: str, name: str, ratio: float, limit: float) -> Finding:
    return Finding(
        "forward_growth", "error", name, step, ratio, limit,
        f"the output of {name} is x{ratio:.3g} that of {before} (limit x{limit:g} either way)",
        f"the weights of {name} have another scale than their neighbours'",
        f'draw it like them: overrides={{"{name}.*": "kaiming_normal"}}',
        "Mishkin & Matas (2016), https://arxiv.org/abs/1511.06422",
    )  # fmt: skip


@detector(order=30)
def backward_growth(
    readings: Readings,
    *,
    shrink: Share = 0.35,
    grow: Factor = 2.5,
    total: Factor = 1e3,
    extreme: Factor = 1e6,
) -> Iterator[Finding]:
    """Gradients that grow or shrink geometrically from the last layer to the first.

    Args:
        readings: What was measured.
        shrink: Factor per layer below which gradients vanish.
        grow: Factor per layer above which they explode.
        total: Factor over the whole depth that must be exceeded too.
        extreme: Factor over the whole depth that suffices alone.
    """
    for reading in readings.steps:
        # From the loss backwards; a gradient that is exactly 0 everywhere comes from a zero head.
        chain = _chain(reading, lambda layer: layer.grad_norm)[::-1]
        if len(chain) < 4:
            continue
        slope = _growth([norm for _, norm in chain])
        span = slope ** (len(chain) - 1)
        apart = max(span, 1 / span) if span > 0 else math.inf
        if apart > extreme or (apart > total and not shrink <= slope <= grow):
            exploding = slope > 1
            what = "explode" if exploding else "vanish"
            fix = (
                "Trainer(gradient_clip_val=1.0) treats the symptom; "
                'InitCallback("orthogonal", params={"gain": 1.0}) or "auto" the cause'
                if exploding
                else 'InitCallback("orthogonal") (keeps gradient norms); in deep nets residual '
                "connections or norm layers with scale 1 and shift 0"
            )
            yield Finding(
                "backward_growth", "error", chain[-1][0], reading.step, slope,
                grow if exploding else shrink,
                f"gradients {what} on the way back: x{slope:.3g} per layer from {chain[0][0]} to "
                f"{chain[-1][0]}, x{span:.2g} in all (sane: x{shrink:g} to x{grow:g} per layer)",
                "weights too large or in the chaotic phase of the activation"
                if exploding
                else "weights too small, or saturated tanh or sigmoid units",
                f"{fix}; {_SEARCH}",
                "Schoenholz et al. (2017), https://arxiv.org/abs/1611.01232",
            )  # fmt: skip
            return


def _chain(reading: StepReading, value: Callable[[LayerReading], float]) -> list[tuple[str, float]]:
    """Layers of one group with a positive, finite value, in execution order.

    Exact zeros come from layers that are zero by design (the last of a branch, a zero head).
    """
    return [
        (layer.name, value(layer))
        for layer in reading.layers
        if layer.group and math.isfinite(value(layer)) and value(layer) > 0
    ]


def _growth(values: list[float]) -> float:
    """Factor per step: the least-squares slope of the logarithms."""
    n = len(values)
    logs = [math.log(value) for value in values]
    middle, mean = (n - 1) / 2, sum(logs) / n
    slope = sum((i - middle) * (log - mean) for i, log in enumerate(logs))
    return math.exp(slope / sum((i - middle) ** 2 for i in range(n)))
