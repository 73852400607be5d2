"""Rules on depth: signals that grow or shrink geometrically from layer to layer.

Growth per layer is scale-free: the absolute size of outputs and gradients says little, since
residual branches, norm layers and loss reductions set it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import median

from lightning_init.architecture.readings import Readings, StepReading
from lightning_init.health.drawn import falls
from lightning_init.health.evidence import ranked
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.places import scheme_of
from lightning_init.health.registry import Factor, Share, detector
from lightning_init.health.trend import (
    backward_chain,
    forward_chain,
    gains,
    growth,
    short_chain,
    strays,
)

_SEARCH = "`lightning-init search --config <your config>` compares schemes on your data"
_REFERENCE = "Schoenholz et al. (2017), https://arxiv.org/abs/1611.01232"
# What multiplies from layer to layer is neither the data's scale nor the learning rate's at step 0.
_NOT_GROWTH = ("data scale",)

_DOWNSTREAM = (
    *("dead_units", "saturated_units", "saturated_attention", "collapsed_samples"),
    *("initial_loss", "zero_gradients", "frozen_layers", "uneven_gradients", "update_ratio"),
    *("loss_blow_up", "loss_oscillates", "loss_flat", "loss_crash", "non_finite"),
    "worse_than_shallow",
)


@detector(order=20, explains=("backward_growth", *_DOWNSTREAM))
def forward_growth(
    readings: Readings,
    *,
    shrink: Share = 0.5,
    grow: Factor = 2.5,
    total: Factor = 100.0,
    extreme: Factor = 1e5,
    jump: Factor = 20.0,
    gain: Share = 0.15,
) -> Iterator[Finding]:
    """Outputs that grow or shrink geometrically through the depth, or jump at one layer.

    Args:
        readings: What was measured.
        shrink: Factor per layer below which outputs vanish.
        grow: Factor per layer above which they explode.
        total: Factor over the whole depth that must be exceeded too.
        extreme: Factor over the whole depth that suffices alone.
        jump: Factor between two neighbours.
        gain: rms(weights) sqrt(fan_in), geometric mean of the layers of a plain net without norms
            and skip paths, below which the signal vanishes at the start, whatever biases add.
    """
    for reading in readings.steps:
        chain = forward_chain(reading)
        faint = gains(reading) if reading.step == 0 else []
        if len(faint) > 1 and _faint(faint) < min(gain, total ** (-1 / len(faint))):
            yield _faint_finding(readings, faint, gain)
            return
        if len(chain) < 4:
            # With few layers there is no trend but from the data on, and no word on trained ones.
            chain = short_chain(reading) if reading.step == 0 else []
        if len(chain) < 3:
            continue
        slope = growth([rms for _, rms in chain])
        span = slope ** (len(chain) - 1)
        apart = max(span, 1 / span) if span > 0 else math.inf
        grows = apart > extreme or (apart > total and not shrink <= slope <= grow)
        jumps = list(strays(reading, chain, jump))
        # One layer that is off tilts the trend of all: then it is the place, not the depth.
        if jumps and (not grows or 2 * len(jumps) < len(chain)):
            yield _jump_finding(readings, reading.step, *jumps[0], jump)
            return
        if grows:
            yield _growth_finding(readings, reading, chain, slope, span, shrink, grow)
            return


def _faint(chain: list[tuple[str, float]]) -> float:
    return math.exp(sum(math.log(factor) for _, factor in chain) / len(chain))


def _faint_finding(readings: Readings, chain: list[tuple[str, float]], limit: float) -> Finding:
    factor, (first, last) = _faint(chain), (chain[0][0], chain[-1][0])
    usual = Cause(
        "init scale",
        f"weights {factor:.2g}/sqrt(fan_in), too small",
        'scale by 1/sqrt(fan_in): InitCallback("kaiming_normal"), "xavier_normal" for tanh',
    )
    finding = found(
        "forward_growth", "error", first, 0, factor, limit,
        f"outputs vanish: the weights pass x{factor:.3g} of what each of {len(chain)} layers from "
        f"{first} to {last} takes (limit x{limit:g}), x{factor ** len(chain):.2g} in all; the rest "
        "is bias, the same for all samples",
        ranked(readings, usual, without=_NOT_GROWTH), _REFERENCE,
    )  # fmt: skip
    return dataclasses.replace(finding, scheme=scheme_of(readings, first))


def _growth_finding(
    readings: Readings,
    reading: StepReading,
    chain: list[tuple[str, float]],
    slope: float,
    span: float,
    low: float,
    high: float,
) -> Finding:
    exploding = slope > 1
    first, last = chain[0][0], chain[-1][0]
    where = first if exploding else last
    if where == "the data":
        where = chain[1][0]
    if exploding:
        usual = [
            Cause(
                "init scale",
                "weights too large for the activation (gain above what keeps the variance)",
                'scale weights by 1/sqrt(fan_in): InitCallback("kaiming_normal"); '
                'params={"scale": 0.1} keeps a scheme that you named and makes it smaller; '
                f"{_SEARCH}",
            ),
            Cause(
                "architecture",
                "each block adds to the last without residual scaling or a norm layer",
                'scale the last layer of each branch: InitCallback("gpt2"), InitCallback("fixup")',
            ),
        ]
    else:
        usual = [
            Cause(
                "init scale",
                "weights too small for the activation: PyTorch's default for Linear and Conv "
                "keeps a third of the variance per layer, a sixth with ReLU",
                'InitCallback("orthogonal") for tanh, InitCallback("kaiming_normal") for ReLU, or '
                f'"lsuv"; {_SEARCH}',
            ),
            Cause(
                "depth",
                f"{len(chain)} layers without residual connections or norm layers",
                "add residual connections (x + f(x)) or norm layers",
            ),
        ]
    finding = found(
        "forward_growth", "error", where, reading.step, slope, high if exploding else low,
        f"outputs {'explode' if exploding else 'vanish'}: x{slope:.3g} per layer over "
        f"{len(chain)} layers from {first} to {last}, x{span:.2g} in all (sane: x{low:g} to "
        f"x{high:g} per layer)",
        ranked(readings, *usual, without=_NOT_GROWTH), _REFERENCE,
    )  # fmt: skip
    return dataclasses.replace(finding, scheme=scheme_of(readings, where))


def _jump_finding(
    readings: Readings, step: int, before: str, name: str, ratio: float, limit: float
) -> Finding:
    scale = Cause(
        "init scale",
        f"the weights of {name} have another scale than their neighbours'",
        f'draw it like them: overrides={{"{name}.*": "kaiming_normal"}}',
    )
    # What the readings say of all layers is less than what they say of this one.
    without = (*_NOT_GROWTH, "init scale", "architecture", "output layer")
    causes = ranked(readings, scale, without=without)
    finding = found(
        "forward_growth", "error", name, step, ratio, limit,
        f"the output of {name} is x{ratio:.3g} that of {before} (limit x{limit:g} either way)",
        causes, "Mishkin & Matas (2016), https://arxiv.org/abs/1511.06422",
    )  # fmt: skip
    return dataclasses.replace(finding, scheme=scheme_of(readings, name))


@detector(
    order=30,
    explains=(
        *("zero_gradients", "frozen_layers", "uneven_gradients", "update_ratio"),
        *("loss_blow_up", "loss_oscillates", "loss_flat", "loss_crash", "non_finite"),
        *("worse_than_shallow", "saturated_units", "collapsed_samples"),
    ),
)
def backward_growth(
    readings: Readings,
    *,
    shrink: Share = 0.35,
    grow: Factor = 2.5,
    total: Factor = 1e3,
    extreme: Factor = 1e6,
) -> Iterator[Finding]:
    """Gradients that grow or shrink geometrically from the last layer to the first.

    After the first step it is an error if the loss does not fall, else a warning.

    Args:
        readings: What was measured.
        shrink: Factor per layer below which gradients vanish.
        grow: Factor per layer above which they explode.
        total: Factor over the whole depth that must be exceeded too.
        extreme: Factor over the whole depth that suffices alone.
    """
    for reading in readings.steps:
        chain = backward_chain(reading)
        if len(chain) < 4:
            continue
        slope = growth([norm for _, norm in chain])
        span = slope ** (len(chain) - 1)
        apart = max(span, 1 / span) if span > 0 else math.inf
        if apart > extreme or (apart > total and not shrink <= slope <= grow):
            # One place, as a tiny layer scale, tilts the trend of all: then it is not the depth.
            usual = median(math.log(far / near) for (_, near), (_, far) in pairwise(chain))
            if usual / math.log(slope) < 0.1:
                continue
            exploding = slope > 1
            what, limit = ("explode", grow) if exploding else ("vanish", shrink)
            first, last = chain[-1][0], chain[0][0]
            # Later on a few positions may do it, as padding under a norm, while the model learns.
            learns = reading.step > 0 and falls(readings) is not False
            severity: Severity = "warning" if learns else "error"
            finding = found(
                "backward_growth", severity, first, reading.step, slope, limit,
                f"gradients {what} on the way back: x{slope:.3g} per layer from {last} to "
                f"{first}, x{span:.2g} in all (sane: x{shrink:g} to x{grow:g} per layer)",
                ranked(readings, *_backward_causes(exploding, chain, reading), without=_NOT_GROWTH),
                _REFERENCE,
            )  # fmt: skip
            yield dataclasses.replace(finding, scheme=scheme_of(readings, first))
            return


def _backward_causes(
    exploding: bool, chain: list[tuple[str, float]], reading: StepReading
) -> list[Cause]:
    if exploding:
        return [
            Cause(
                "init scale",
                "weights too large or in the chaotic phase of the activation",
                'InitCallback("orthogonal", params={"gain": 1.0}) or "auto"; '
                f"Trainer(gradient_clip_val=1.0) treats the symptom; {_SEARCH}",
            ),
            Cause(
                "architecture",
                "each block adds to the last without residual scaling or a norm layer",
                'InitCallback("gpt2") or InitCallback("fixup")',
            ),
        ]
    bounded = [one.after for one in reading.layers if one.after and one.after.saturated >= 0]
    text = "weights too small, or saturated tanh or sigmoid units"
    if bounded:
        worst = max(bounded, key=lambda one: one.saturated)
        flat = f"up to {worst.saturated:.0%} of its outputs are where it is flat"
        text = f"weights too small for {worst.function}"
        if worst.saturated > 0.5:
            text = f"weights too large for {worst.function}: {flat}"
        elif worst.saturated >= 0.05:
            text += f", or too large: {flat}"
    return [
        Cause(
            "init scale",
            text,
            f'InitCallback("orthogonal") (keeps gradient norms) or "auto"; {_SEARCH}',
        ),
        Cause(
            "depth",
            f"{len(chain)} layers without a short way back",
            "add residual connections, or norm layers with gamma (scale) 1 and beta (shift) 0",
        ),
    ]
