"""What the readings say about learning rate, loss, output layer, targets and batches.

As in `drawn.py`, each look yields at most one suspicion: e-folds beyond what is usual, and the
cause in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from lightning_init.architecture.readings import Readings, StepReading, WeightReading
from lightning_init.health.drawn import Suspicion
from lightning_init.health.findings import Cause
from lightning_init.health.mismatch import mismatched
from lightning_init.health.motion import ceiling, longest, typical_ratios

_CERTAIN = 20.0  # what can be nothing else
_MOST = 3.0  # a too large loss or gradient at the start makes too long steps, too
_LENGTH, _RATIO, _JUMP = 0.3, 0.2, 1.2  # beyond those of healthy runs


def _learning_rate(readings: Readings) -> Iterator[Suspicion]:
    length, step, name = longest(readings)
    ratios = typical_ratios(readings)
    far = max(ratios, key=ratios.__getitem__, default=0)
    jump, jumped = _jump(readings)
    ratio = ratios.get(far, 0.0)
    moves = f"step {step} moves the outputs of {name} by {length:.2g} times its inputs"
    speaks = {
        moves: length / _LENGTH,
        f"step {far} moves the weights by {ratio:.2g} times their size": ratio / _RATIO,
        f"the loss rises x{jump:.2g} by step {jumped}, right after the first updates": jump / _JUMP,
    }
    text, factor = max(speaks.items(), key=lambda item: item[1])
    if not factor > 1:
        return
    strength = min(_MOST, 1 + math.log(min(factor, 1e6))) - _bad_start(readings)
    if strength > 0:
        remedy = "a 10 times smaller learning rate, warm-up, or Trainer(gradient_clip_val=1.0)"
        rates = [readings.lr[one] for one in sorted(readings.lr) if readings.lr[one] > 0]
        remedy += f"; it is {max(rates[:20]):.3g}" if rates else ""
        yield strength, Cause("learning rate", text, remedy)


def _jump(readings: Readings) -> tuple[float, int]:
    """How far the loss rose above first loss and chance within ten steps, and when."""
    top = ceiling(readings)
    # What is not finite came of anything; what rises comes of steps that are too long.
    early = [
        (loss, step)
        for step, loss in readings.loss.items()
        if 0 < step <= 10 and math.isfinite(loss)
    ]
    loss, step = max(early, default=(0.0, 0))
    return (loss / top if top > 0 else 0.0), step


def _bad_start(readings: Readings) -> float:
    """E-folds of the first loss above what it should be: then large gradients are no surprise."""
    found = 0.0
    for reading in readings.steps[:1]:
        for loss in reading.losses:
            if math.isfinite(loss.value) and loss.chance > 0 and loss.value > 0:
                usual = 1.3 if loss.exact else 10.0
                found = max(found, math.log(loss.value / loss.chance / usual))
    return found


def _loss_function(readings: Readings) -> Iterator[Suspicion]:
    mismatch = mismatched(readings)
    if mismatch is not None and mismatch.severity == "error":
        yield _CERTAIN, mismatch.causes[0]


def _output_layer(readings: Readings) -> Iterator[Suspicion]:
    for reading in readings.steps[:1]:
        gains = {
            layer.name: (layer.rms / layer.input_rms, layer.is_output)
            for layer in reading.layers
            if layer.input_rms > 0 and math.isfinite(layer.rms)
        }
        tied = {weight.module for weight in too_large_tied(readings)}
        for name, (gain, is_output) in gains.items():
            if is_output and gain > 3 and name not in tied:
                others = [other for other, last in gains.values() if not last]
                alone = not others or max(others) < 3
                text = f"{name or 'the last matrix'} makes its outputs {gain:.3g} times as large as its inputs"
                remedy = (
                    f'draw it smaller: overrides={{"{_matrix(reading, name)}": '
                    '{"strategy": "normal", '
                    '"params": {"std": 0.01}}}'
                )
                yield math.log(gain) + 2 * alone, Cause("output layer", text, remedy)
                return


def _matrix(reading: StepReading, layer: str) -> str:
    """The name of the matrix that a layer multiplies by, which may be a bare parameter."""
    usual = f"{layer}.weight".lstrip(".")
    own = [each for each in reading.weights if len(each.shape) > 1]
    names = [each.name for each in own if each.module == layer or layer in each.names]
    return usual if usual in names or not names else names[-1]


def _target(readings: Readings) -> Iterator[Suspicion]:
    for reading in readings.steps[:1]:
        for loss in reading.losses:
            if loss.kind != "squared error" or not loss.chance > 25:
                continue
            size = math.sqrt(loss.chance)
            text = f"the targets have rms {size:.3g}, and a squared error's gradient grows with it"
            if math.isfinite(loss.target_high - loss.target_low):
                text += f" ({loss.target_low:.3g} to {loss.target_high:.3g})"
            remedy = "scale the targets: (y - mean) / std, and back for predictions"
            yield math.log(size), Cause("target", text, remedy)
            return


def _tied_weights(readings: Readings) -> Iterator[Suspicion]:
    if _bad_start(readings) <= 0:
        return
    for weight in too_large_tied(readings):
        size = weight.rms * math.sqrt(weight.shape[-1])
        text = (
            f"{' = '.join(weight.names)} is one tensor of std {weight.rms:.3g}: right for a "
            f"table, but as output layer it asks for at most {1 / math.sqrt(weight.shape[-1]):.2g}"
        )
        remedy = f'overrides={{"{weight.names[0]}": {{"strategy": "normal", "params": {{"std": 0.02}}}}}}'
        yield 5 + math.log(size), Cause("tied weights", text, remedy)
        return


def too_large_tied(readings: Readings, limit: float = 3.0) -> list[WeightReading]:
    """Tables that are output layers, too, and too large for that: logits of std above `limit`."""
    return [
        weight
        for reading in readings.steps[:1]
        for weight in reading.weights
        if len(weight.names) > 1
        and weight.role == "embedding"
        and len(weight.shape) == 2
        and not weight.trained
        and weight.rms * math.sqrt(weight.shape[-1]) > limit
    ]


def _batches(readings: Readings) -> Iterator[Suspicion]:
    harmless = [step for step in readings.bad_batches if math.isfinite(readings.loss.get(step, 0))]
    if readings.bad_batches and not harmless:
        step = readings.bad_batches[0]
        text = f"the batch of step {step} holds NaN or infinity"
        yield _CERTAIN, Cause("data", text, "torch.isfinite(x).all() on the data, before scaling")
        return
    for reading in readings.steps[:1]:
        for loss in reading.losses:
            if loss.prior == 0 and loss.classes > 1 and readings.rows not in (0, loss.classes):
                text = f"all {readings.rows} targets of the first batch are of one class"
                yield 1.0, Cause("data", text, "DataLoader(..., shuffle=True)")
                return


LOOKS: tuple[Callable[[Readings], Iterator[Suspicion]], ...] = (
    *(_learning_rate, _loss_function, _output_layer, _target, _tied_weights, _batches),
)
