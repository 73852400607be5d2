"""The rule on gamma and beta of norm layers before the first step: ones and zeros, or on purpose."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_init.architecture.readings import Readings, StepReading, WeightReading
from lightning_init.health.findings import Cause, Finding, Severity, found
from lightning_init.health.places import and_more
from lightning_init.health.registry import Factor, detector

_EXPLAINS = (
    *("forward_growth", "backward_growth", "initial_loss", "collapsed_samples", "dead_units"),
    *("saturated_units", "saturated_attention", "zero_gradients", "frozen_layers", "loss_flat"),
    *("uneven_gradients", "update_ratio", "loss_blow_up", "loss_oscillates"),
)
# Severity, value, limit, what is odd about it.
Odd = tuple[Severity, float, float, str]


@detector(order=14, explains=_EXPLAINS)
def norm_values(
    readings: Readings,
    *,
    large: Factor = 10.0,
    huge: Factor = 30.0,
    small: Factor = 100.0,
    shift: Factor = 2.0,
    far: Factor = 5.0,
    all_large: Factor = 20.0,
    all_small: Factor = 20.0,
) -> Iterator[Finding]:
    """Norm layers whose gamma is not about 1 or whose beta is not about 0 before training.

    Gammas of zero are usual at the end of residual branches and where the layer adds 1 to them:
    they count only if a layer takes nothing but zeros. Loaded weights are not judged, nor are
    zeros that a plan wrote.

    Args:
        readings: What was measured.
        large: Rms of gamma above which it is a warning.
        huge: Rms of gamma above which it is an error.
        small: Rms of gamma below the inverse of which it is a warning, unless it is 0.
        shift: Rms of beta above which it is a warning.
        far: Rms of beta above which it is an error: a normalized signal never comes back to 0.
        all_large: Rms above which it is an error if that of every norm layer, two or more, is.
        all_small: Rms below the inverse of which it is an error if that of every norm layer is, and
            none is 0.
    """
    for reading in readings.steps[:1]:
        if reading.step != 0:
            return
        cut_off = _cut_off(reading)
        odd: list[tuple[WeightReading, Odd]] = []
        for weight in reading.weights:
            if weight.trained or not weight.finite or _planned(weight):
                continue
            if weight.role == "norm_scale":
                found_odd = _gamma(weight, large, huge, small, cut_off)
            elif weight.role == "norm_shift":
                found_odd = _beta(weight, shift, far)
            else:
                continue
            if found_odd is not None:
                odd.append((weight, found_odd))
        everywhere = _everywhere(reading, all_large, all_small)
        if everywhere is not None and all(one[1][0] != "error" for one in odd):
            odd = everywhere
        if odd:
            yield _finding(odd)
        return


def _planned(weight: WeightReading) -> bool:
    """Whether a plan wrote zeros there and they are zeros."""
    return weight.expected_mean == 0 and weight.expected_std == 0 and weight.rms == 0


def _everywhere(
    reading: StepReading, large: float, small: float
) -> list[tuple[WeightReading, Odd]] | None:
    """All gammas of the model, if each is far off: one may be meant, all of them are not.

    Drawn around 0 they are 1 + gamma, or drawn at random, which is another matter.
    """
    scales = [one for one in reading.weights if one.role == "norm_scale"]
    if len(scales) < 2 or any(one.trained or not one.finite or _planned(one) for one in scales):
        return None
    for limit, beyond, word in (
        (large, [one.mean > large for one in scales], "large"),
        (1 / small, [0.5 * one.rms < one.mean < 1 / small for one in scales], "small"),
    ):
        if all(beyond):
            odd = max if word == "large" else min
            worst = odd(scales, key=lambda one: one.rms)
            text = f"is {worst.mean:.3g} on average, and that of no norm layer is near 1"
            found: Odd = ("error", worst.rms, limit, text)
            return [(worst, found), *((one, found) for one in scales if one is not worst)]
    return None


def _cut_off(reading: StepReading) -> str:
    """The first layer that takes nothing but zeros, `""` if all of them get a signal."""
    return next((layer.name for layer in reading.layers if layer.input_rms == 0), "")


def _gamma(
    weight: WeightReading, large: float, huge: float, small: float, cut_off: str
) -> Odd | None:
    if weight.rms == 0:
        text = f"is 0 everywhere, so that {cut_off} takes nothing but zeros"
        return ("error", 0.0, 1 / small, text) if cut_off else None
    if weight.rms > large:
        error = weight.rms > huge
        limit = huge if error else large
        return "error" if error else "warning", weight.rms, limit, f"has rms {weight.rms:.3g}"
    if weight.rms < 1 / small:
        return "warning", weight.rms, 1 / small, f"has rms {weight.rms:.3g}"
    if weight.mean < 0:
        return "warning", weight.mean, 0.0, f"has mean {weight.mean:.3g}: it turns signs around"
    if weight.numel >= 16 and weight.std > 0.5 * weight.rms:
        text = f"is drawn at random (mean {weight.mean:.3g}, std {weight.std:.3g})"
        return "warning", weight.std, 0.5 * weight.rms, text
    return None


def _beta(weight: WeightReading, shift: float, far: float) -> Odd | None:
    if weight.rms <= shift:
        return None
    error = weight.rms > far
    return (
        "error" if error else "warning", weight.rms, far if error else shift,
        f"has mean {weight.mean:.3g} and rms {weight.rms:.3g}",
    )  # fmt: skip


def _finding(odd: list[tuple[WeightReading, Odd]]) -> Finding:
    rank = {"error": 0, "warning": 1, "info": 2}
    worst, (severity, value, limit, text) = min(odd, key=lambda one: rank[one[1][0]])
    names = [worst.name, *(weight.name for weight, _ in odd if weight is not worst)]
    usual = "ones" if worst.role == "norm_scale" else "zeros"
    letter = "gamma" if worst.role == "norm_scale" else "beta"
    causes = [
        Cause(
            "normalization",
            f"{letter} starts at {1 if usual == 'ones' else 0} in a norm layer; code that draws "
            "all parameters alike, or an own init, wrote this one",
            f'overrides={{"{worst.name}": "{usual}"}}, or leave norm layers out of the own init',
        )
    ]
    if value == 0:
        causes[0] = Cause(
            "normalization",
            "gamma 0 belongs at the end of residual branches, where a skip path leads around it",
            f'overrides={{"{worst.name}": "ones"}}',
        )
    return found(
        "norm_values", severity, worst.name, 0, value, limit,
        f"{letter} of a norm layer, {and_more(names, 'tensor')}, {text} (limit {limit:g})",
        causes, "Ioffe and Szegedy (2015), https://arxiv.org/abs/1502.03167, section 3.1",
    )  # fmt: skip
