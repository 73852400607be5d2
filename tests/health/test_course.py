"""The course of a loss: swings, plateaus and crashes, either side of each limit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from lightning_init.architecture.readings import (
    LayerReading,
    LossReading,
    Readings,
    StepReading,
    WeightReading,
)
from lightning_init.health.findings import Finding
from lightning_init.health.registry import examine

IN, OUT = 0.98, 1.02
CHANCE = LossReading("cross-entropy over 10 classes", 2.3, 2.3, 2.3, exact=True)


def course(losses: Iterable[float], chance: float = math.nan, **facts: Any) -> Readings:
    known = replace(CHANCE, chance=chance)
    first = (StepReading(0, losses=(known,)),) if chance == chance else ()
    return Readings((*first, *facts.pop("steps", ())), dict(enumerate(losses)), **facts)


def only(name: str, readings: Readings) -> Finding | None:
    found = examine(readings, (name,))
    assert len(found) <= 1
    return found[0] if found else None


def severity(name: str, readings: Readings) -> str | None:
    found = only(name, readings)
    return found.severity if found else None


# blowing up


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((2.3, *[2.3 * 1.5 * IN] * 3), None),
        ((2.3, *[2.3 * 1.5 * OUT] * 3), "error"),
        ((2.3, *[2.3 * 1.5 * OUT] * 2, 2.0), "warning"),
        ((2.9, *[2.9 * 1.5 * IN] * 3), None),  # above its start
        ((2.9, *[2.9 * 1.5 * OUT] * 3), "error"),
        ((0.1, *[2.3 * IN] * 3), None),
        ((0.1, *[2.3 * OUT] * 3), "error"),  # three times its lowest
    ],
)
def test_above_chance(losses: tuple[float, ...], expected: str | None) -> None:
    assert severity("loss_blow_up", course(losses, chance=2.3)) == expected


def test_a_blow_up_explains_what_comes_after_it() -> None:
    (found,) = examine(course([1.0, 4.0, 9.0, 30.0, math.nan]))
    assert found.detector == "loss_blow_up"
    assert found.causes[0] == "learning rate"
    assert "non_finite" in [one.detector for one in found.consequences]


# swinging


def swings(size: float, steps: int = 30, base: float = 1.0) -> list[float]:
    # From one step to the next by `size` of the middle.
    return [base, *(base * (1.05 + size / 2 * (-1) ** i) for i in range(steps))]


def test_oscillation() -> None:
    assert severity("loss_oscillates", course(swings(0.5 * 1.05 / 0.97))) is not None
    assert severity("loss_oscillates", course(swings(0.4))) is None
    assert severity("loss_oscillates", course(swings(0.8, steps=19))) is None
    found = only("loss_oscillates", course(swings(0.8)))
    assert found is not None
    assert found.severity == "warning"
    assert found.causes[0] == "learning rate"
    low = [2.0, *swings(0.8, base=0.3)]
    assert severity("loss_oscillates", course(low)) is None  # never above its start
    steady = [1.0, *(1.1 + i % 20 for i in range(40))]
    assert severity("loss_oscillates", course(steady)) is None  # it hardly turns


def test_batch_noise_is_no_oscillation() -> None:
    noise = [2.3 * (1 + 0.15 * math.sin(i * i)) for i in range(60)]
    assert severity("loss_oscillates", course(noise)) is None


# flat


@pytest.mark.parametrize(
    ("late", "expected"), [(0.99 * 0.995, None), (0.99 * 1.005, "warning"), (1.2, "warning")]
)
def test_flat(late: float, expected: str | None) -> None:
    losses = [1.0] * 10 + [0.999] * 30 + [late] * 10
    assert severity("loss_flat", course(losses)) == expected
    assert severity("loss_flat", course(losses[:-1])) != "warning"


def test_flat_in_ten_steps_is_an_info() -> None:
    assert severity("loss_flat", course([1.0] * 8 + [IN] * 3)) is None
    assert severity("loss_flat", course([1.0] * 8 + [OUT] * 3)) == "info"
    assert severity("loss_flat", course([1.0] * 8 + [OUT] * 2)) is None


def test_far_below_its_start_a_loss_may_rest() -> None:
    losses = [2.3, *[0.5] * 60]
    assert severity("loss_flat", course(losses, chance=2.3)) is None
    assert severity("loss_flat", course([2.3] * 60, chance=2.3)) == "error"  # ever the same
    wavy = [2.3 + 0.01 * (-1) ** i for i in range(60)]
    assert severity("loss_flat", course(wavy, chance=2.3)) == "warning"


def test_warm_up_does_not_count() -> None:
    losses = [1 + 0.001 * math.sin(i) for i in range(100)]
    rising = {step: (step + 1) / 60 for step in range(100)}
    assert severity(
        "loss_flat", course(losses, lr={s: min(r, 1.0) for s, r in rising.items()})
    ) in (
        None,
        "info",
    )
    short = {step: min((step + 1) / 40, 1.0) for step in range(100)}
    assert severity("loss_flat", course(losses, lr=short)) == "warning"
    assert severity("loss_flat", course(losses, lr=rising)) is None
    assert severity("loss_flat", course(losses, lr=dict.fromkeys(range(100), 0.1))) == "warning"


def alike(cosine: float, step: int = 50) -> StepReading:
    head = LayerReading(
        *("head", "Linear", "", 0.0, 1.0, 1.0, 1.0, 0.0),
        sample_cosine=cosine,
        unit_cosine=0.0,
        is_output=True,
    )
    return StepReading(step, (head,))


def silent(*gradients: float, step: int = 50) -> StepReading:
    weights = (
        WeightReading(f"{i}", 99, 0.0, 1.0, role="weight", grad_rms=gradient)
        for i, gradient in enumerate(gradients)
    )
    return StepReading(step, weights=tuple(weights))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (alike(0.999988), "warning"),
        (alike(0.999995), "error"),
        (alike(0.999995, step=5), "warning"),
        (silent(0.0, 0.0, 1.0), "error"),
        (silent(0.0, 1.0, 1.0), "warning"),
        (silent(0.0), "warning"),
    ],
)
def test_flat_with_a_companion(step: StepReading, expected: str) -> None:
    losses = [2.3 + 0.01 * (-1) ** i for i in range(60)]
    found = only("loss_flat", course(losses, steps=(step,)))
    assert found is not None
    assert found.severity == expected
    assert (f"at step {step.step}" in found.message) is (expected == "error")


def test_steps_that_are_too_short_are_named() -> None:
    def step(ratio: float) -> StepReading:
        weight = WeightReading("w", 99, 0.0, 1.0, role="weight", fan_in=9.0, update=ratio)
        return StepReading(20, weights=(weight,))

    losses = [2.3 + 0.01 * (-1) ** i for i in range(60)]
    for ratio, first in ((1e-4 * IN, "learning rate"), (1e-4 * OUT, "init scale")):
        found = only("loss_flat", course(losses, steps=(step(ratio),)))
        assert found is not None
        assert found.causes[0] == first


# flat, then crash


def crash(*ends: float, flat: int = 60, noise: float = 0.01) -> list[float]:
    return [*(2.3 * (1 + noise * math.sin(i)) for i in range(flat)), *ends]


@pytest.mark.parametrize(
    ("losses", "fires"),
    [
        (crash(math.nan), True),
        (crash(math.inf), True),
        (crash(*[2.3 * 3 * 1.03] * 3), True),
        (crash(*[2.3 * 3 * 0.97] * 3), False),
        (crash(*[9.0] * 2), False),
        (crash(9.0, 9.0, 2.3), False),  # a bad batch
        (crash(math.nan, flat=49), False),
        (crash(math.nan, flat=50), True),
        (crash(2.5, 3.0, math.nan), True),
        (crash(), False),
        ([2.3 * 0.97**i for i in range(60)] + [math.nan], False),  # it was learning
        ([2.3, *[0.2] * 60, math.nan], False),  # it had learnt
        ([math.nan] * 60, False),
    ],
)
def test_crash(losses: list[float], fires: bool) -> None:
    found = only("loss_crash", course(losses, chance=2.3))
    assert (found is not None) is fires
    if found is not None:
        assert found.severity == "error"
        assert found.causes[:2] == ("learning rate", "init scale")
        assert "flat at 2.3" in found.message


def test_a_crash_is_one_finding() -> None:
    (found,) = examine(course(crash(math.nan), chance=2.3))
    assert found.detector == "loss_crash"
    assert found.step == 59
    assert [one.detector for one in found.consequences] == ["non_finite"]
    rates = {step: 1e-4 * 1.1**step for step in range(61)}
    found = only("loss_crash", course(crash(math.nan), chance=2.3, lr=rates))
    assert found is not None
    assert f"it rose from 0.0001 to {rates[60]:.3g}" in found.likely_cause


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    "losses",
    [[1.0, 0.5, 0, 0, 0, 5, 5, 5, 5, 5], [0.0] * 40, [0.0] * 30 + [1.0] * 9, [1.0, 0.0] * 20],
)
def test_a_loss_of_exactly_zero(losses: list[float], exact: bool) -> None:
    start = LossReading("cross-entropy over 10 classes", losses[0], 1.0, 1.0, exact)
    readings = Readings((StepReading(0, losses=(start,)),), dict(enumerate(losses)))
    names = [finding.detector for finding in examine(readings)]
    assert ("loss_blow_up" in names) is (losses[-1] == 5)


def test_a_chance_that_every_batch_has_anew_is_no_ceiling() -> None:
    for varies, expected in ((False, ["loss_blow_up"]), (True, [])):
        start = LossReading("binary cross-entropy with logits", 1.0, 1.0, 0.5, True, varies=varies)
        losses = dict(enumerate([1.0, 0.9, *[1.6] * 5]))
        found = examine(Readings((StepReading(0, losses=(start,)),), losses), ("loss_blow_up",))
        assert [one.detector for one in found] == expected
