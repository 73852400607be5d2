"""What the readings say about data, drawn weights and the model's form: suspects with numbers.

Each look yields at most one suspicion: how many e-folds something is beyond what is usual, and the
cause in words. `evidence.py` ranks them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from lightning_init.architecture.readings import LayerReading, Readings, WeightReading
from lightning_init.health.findings import Cause
from lightning_init.health.places import and_more, matrices
from lightning_init.health.trend import forward_chain, growth

# A cause, and how strongly the readings speak for it: e-folds beyond what is usual.
Suspicion = tuple[float, Cause]

_CERTAIN = 20.0  # what can be nothing else
_LARGE, _SMALL = 3.0, 0.1  # rms(w) sqrt(fan_in): kaiming 1.4, torch 0.58, std 0.02 at 32 wide 0.11


def falls(readings: Readings) -> bool | None:
    """Whether the loss has come down by a twentieth, None if there are fewer than 8 of them.

    Example:
        >>> falls(Readings(loss=dict(enumerate([2.0] * 8))))
        False
    """
    losses = [loss for _, loss in sorted(readings.loss.items())]
    if len(losses) < 8:
        return None
    part = max(2, len(losses) // 4)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    return last < first - 0.05 * abs(first)


def relative_size(weight: WeightReading) -> float:
    """rms(w) sqrt(fan_in): the factor by which independent inputs grow, NaN if it is not known."""
    return weight.rms * math.sqrt(weight.fan_in) if weight.fan_in > 0 else math.nan


def most_are_small(readings: Readings) -> bool:
    """Whether most matrices are too small for their fan-in."""
    for reading in readings.steps[:1]:
        sizes = [relative_size(one) for one in matrices(reading) if one.rms > 0 and not one.trained]
        return bool(sizes) and 2 * sum(s < _SMALL for s in sizes) > len(sizes)
    return False


def _data_scale(readings: Readings) -> Iterator[Suspicion]:
    for reading in readings.steps[:1]:
        for one in reading.inputs:
            if one.finite and not one.normalized and one.rms > 5:
                text = f"the inputs of {one.name} have mean {one.mean:.3g} and std {one.std:.3g}"
                remedy = "scale the data to mean 0 and std 1, or put a norm layer first"
                yield math.log(one.rms), Cause("data scale", text, remedy)
                return


def _init_scale(readings: Readings) -> Iterator[Suspicion]:
    for reading in readings.steps[:1]:
        sized = [
            (weight, relative_size(weight))
            for weight in matrices(reading)
            if not weight.trained and math.isfinite(relative_size(weight)) and weight.rms > 0
        ]
        if not sized:
            return
        large = [one for one in sized if one[1] > _LARGE]
        small = [one for one in sized if one[1] < _SMALL]
        # One small head or tail is usual, one large matrix is not; all of them are a scheme.
        for odd, enough, word in (
            (large, 1, "large"),
            (small, len(sized) // 2 + 1, "small"),
        ):
            if len(odd) >= enough:
                weight, size = max(odd, key=lambda one: abs(math.log(one[1])))
                text = (
                    f"{and_more([weight.name, *[one.name for one, _ in odd if one is not weight]], 'tensor')} "
                    f"{_has(odd)} std {weight.rms:.3g}, {size:.3g}/sqrt(fan_in): too {word}"
                )
                remedy = (
                    f"scale by 1/sqrt(fan_in), here std {1 / math.sqrt(weight.fan_in):.2g}: "
                    'InitCallback("kaiming_normal"), "xavier_normal" for tanh'
                )
                middle = median(size for _, size in odd)
                strength = abs(math.log(middle / (_LARGE if word == "large" else _SMALL)))
                yield 1.5 + strength, Cause("init scale", text, remedy)
                return


def _symmetry(readings: Readings) -> Iterator[Suspicion]:
    for reading in readings.steps[:1]:
        same = [w for w in matrices(reading) if w.twins > 0.5 and len(w.shape) > 1]
        flat = [w for w in matrices(reading) if w.std == 0 and w.numel > 1]
        if len(flat) > 0.8 * len(matrices(reading)):
            same = same or flat
        if same:
            value = f"all {same[0].mean:.3g}" if same[0].std == 0 else "the same in each unit"
            text = f"the weights of {and_more([w.name for w in same], 'tensor')} are {value}"
            remedy = 'draw them: InitCallback("kaiming_normal"), "xavier_normal" for tanh'
            yield _CERTAIN, Cause("symmetry", text, remedy)


def _bias(readings: Readings) -> Iterator[Suspicion]:
    for reading in readings.steps[:1]:
        after = {layer.name: layer.after for layer in reading.layers}
        odd = []
        for weight in reading.weights:
            follows = after.get(weight.module)
            shuts = follows is not None and (follows.dead > 0.5 or follows.saturated > 0.5)
            if weight.role == "bias" and weight.rms > (1.0 if shuts else 3.0):
                odd.append(weight)
        if odd:
            worst = max(odd, key=lambda one: one.rms)
            names = [worst.name, *(one.name for one in odd if one is not worst)]
            text = (
                f"{and_more(names, 'tensor')} {_has(odd)} mean {worst.mean:.3g} and rms "
                f"{worst.rms:.3g}"
            )
            which = worst.name if len(odd) == 1 else "role:bias"
            remedy = f'biases start at 0: overrides={{"{which}": "zeros"}}'
            yield 2.0 + math.log(worst.rms), Cause("bias", text, remedy)


def _activation(readings: Readings) -> Iterator[Suspicion]:
    for reading in readings.steps[:1]:
        flat = [one for one in reading.layers if one.after and one.after.saturated > 0.5]
        if flat:
            worst = max(flat, key=_saturated)
            text = (
                f"{_saturated(worst):.0%} of the {worst.after.function if worst.after else ''} "
                f"outputs after {worst.name} are where it is flat"
            )
            remedy = "smaller weights before it, a norm layer, or relu / gelu with kaiming_normal"
            yield math.log(_saturated(worst) / 0.25), Cause("activation", text, remedy)


def _has(several: Sequence[object]) -> str:
    return "has" if len(several) == 1 else "have"


def _saturated(layer: LayerReading) -> float:
    return layer.after.saturated if layer.after else 0.0


def _architecture(readings: Readings) -> Iterator[Suspicion]:
    for reading in readings.steps[:1]:
        plain = {weight.module for weight in reading.weights if weight.role == "weight"}
        blocks = [one for one in reading.layers if one.group and one.name not in plain]
        chain = forward_chain(reading)
        if len(blocks) < 4 or len(chain) < 4 or chain[0][0] not in {b.name for b in blocks}:
            return
        factor = growth([rms for _, rms in chain])
        span = factor ** (len(chain) - 1)
        # With large weights the branches themselves are too large, not their number.
        if span > 10 and not any(relative_size(one) > _LARGE for one in matrices(reading)):
            text = (
                f"{len(chain)} blocks add up without residual scaling or norm layers: the output "
                f"grows x{factor:.3g} per block"
            )
            remedy = (
                "scale the last layer of each branch by 1/sqrt(blocks): "
                'InitCallback("gpt2"), or "fixup", "auto"; or norm layers'
            )
            yield math.log(span / 3), Cause("architecture", text, remedy)


def _attention_scale(readings: Readings) -> Iterator[Suspicion]:
    for reading in readings.steps[:1]:
        sharp = [one for one in reading.attentions if one.logit_std > 5]
        if sharp and not any(relative_size(one) > _LARGE for one in matrices(reading)):
            worst = max(sharp, key=lambda one: one.logit_std)
            text = f"attention logits in {worst.name} have std {worst.logit_std:.3g}, usual is 1"
            remedy = "divide the logits by sqrt(head width), or smaller query and key weights"
            yield math.log(worst.logit_std), Cause("attention scale", text, remedy)


LOOKS: tuple[Callable[[Readings], Iterator[Suspicion]], ...] = (
    *(_data_scale, _init_scale, _symmetry, _bias, _activation, _architecture, _attention_scale),
)
