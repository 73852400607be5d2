"""Update ratios and weights that do not move, either side of each limit."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_init.architecture.readings import Readings, StepReading, WeightReading
from lightning_init.health.findings import Finding
from lightning_init.health.motion import ceiling, longest, settled, typical_ratios
from lightning_init.health.registry import examine

IN, OUT = 0.98, 1.02


def weight(name: str = "fc", update: float = math.nan, **facts: Any) -> WeightReading:
    known = {"role": "weight", "fan_in": 25.0, "numel": 100, "mean": 0.0, "std": 0.2, **facts}
    return WeightReading(name, update=update, **known)


def at(step: int, *updates: float, **facts: Any) -> StepReading:
    return StepReading(
        step, weights=tuple(weight(f"fc{i}", update, **facts) for i, update in enumerate(updates))
    )


def only(name: str, readings: Readings) -> Finding | None:
    found = examine(readings, (name,))
    assert len(found) <= 1
    return found[0] if found else None


def flat(steps: int, level: float = 1.0) -> dict[int, float]:
    return dict.fromkeys(range(steps), level)


def falling(steps: int) -> dict[int, float]:
    return {step: 1 / (1 + step) for step in range(steps)}


@pytest.mark.parametrize(
    ("ratio", "loss", "severity"),
    [
        (0.2 * IN, flat(30), None),
        (0.2 * OUT, falling(30), "warning"),
        (0.7 * IN, falling(30), "warning"),
        (0.7 * OUT, falling(30), "error"),
        (0.2 * OUT, flat(30), "error"),  # no lower 15 steps later
        (0.2 * OUT, flat(15), "warning"),  # too early to tell
        (0.2 * OUT, {**falling(30), 4: 1.2 * IN}, "warning"),
        (0.2 * OUT, {**falling(30), 4: 1.2 * OUT}, "error"),
        (0.2 * OUT, {**falling(30), 4: math.nan}, "error"),
        (0.2 * OUT, {}, "warning"),
        (0.2 * IN, {**falling(30), 4: 9.0}, None),  # it jumps for another reason
    ],
)
def test_too_large(ratio: float, loss: dict[int, float], severity: str | None) -> None:
    found = only("update_ratio", Readings((at(1, ratio, ratio, ratio),), loss, lr={1: 0.5}))
    assert (found.severity if found else None) == severity
    if found is not None:
        assert found.causes[0] == "learning rate"
        assert found.value == pytest.approx(ratio)
        assert f"by {ratio:.2g} times their own size" in found.message
        assert f"step 1 moves the weights by {ratio:.2g}" in found.likely_cause
        assert "10 times smaller learning rate" in found.remedy
        assert "it is 0.5" in found.remedy


@pytest.mark.parametrize(
    ("ratios", "severity"),
    [((0.31, 0.31, 0.31), "error"), ((0.31, 0.31, 0.29), "warning"), ((0.31, 0.31), "warning")],
)
def test_three_long_steps(ratios: tuple[float, ...], severity: str) -> None:
    steps = tuple(at(step, ratio, ratio) for step, ratio in zip((1, 2, 5), ratios, strict=False))
    found = only("update_ratio", Readings(steps, falling(30)))
    assert found is not None
    assert found.severity == severity


@pytest.mark.parametrize(
    ("low", "steps", "facts", "fires"),
    [
        (1e-6 * OUT, (10, 20), {}, False),
        (1e-6 * IN, (10, 20), {}, True),
        (0.0, (10, 20), {}, True),
        (0.0, (10,), {}, False),
        (0.0, (2, 5, 10), {}, False),
        (0.0, (10, 20), {"skips_allowed": True}, False),
        (0.0, (10, 20), {"lr": {step: step / 100 for step in range(16)}}, False),  # warm-up
        (0.0, (20, 50), {"lr": {step: min(step, 15) / 100 for step in range(60)}}, True),
    ],
)
def test_too_small(low: float, steps: tuple[int, ...], facts: dict[str, Any], fires: bool) -> None:
    readings = Readings(tuple(at(step, low, low, low) for step in steps), **facts)
    found = only("update_ratio", readings)
    assert (found is not None) is fires
    if found is not None:
        assert found.severity == "warning"
        assert found.causes[0] == "learning rate"
        assert "bf16-mixed" in found.remedy


def test_the_median_counts_and_only_of_matrices_that_started_somewhere() -> None:
    assert only("update_ratio", Readings((at(1, 9.0, 0.01, 0.01),))) is None
    for facts in ({"role": "bias"}, {"trainable": False}, {"numel": 9}, {"role": "embedding"}):
        assert only("update_ratio", Readings((at(1, 9.0, 9.0, **facts),))) is None
    zero = (at(0, math.nan, math.nan, std=0.0), at(1, 9.0, 9.0))
    assert only("update_ratio", Readings(zero)) is None
    planned = (at(0, math.nan, math.nan), at(1, 9.0, 9.0))
    assert only("update_ratio", Readings(planned)) is not None


def test_small_weights_count_as_if_they_were_of_usual_size() -> None:
    for std, factor in ((0.1 * 1.001, 1.0), (0.02, 0.2), (1.0, 1.0)):
        before = std  # times sqrt(25): 0.5 is usual
        after = before * math.hypot(1, 0.5)
        ratios = typical_ratios(Readings((at(1, 0.5, std=after),)))
        assert ratios[1] == pytest.approx(0.5 * factor)


def test_the_first_update_is_told_by_the_weights_before_and_after() -> None:
    # w0 of rms 1; a step of length 0.8; then one of half of what is there.
    after = math.hypot(1, 0.8) * math.hypot(1, 0.5)
    first, second = at(0, math.nan, std=1.0), at(1, 0.5, std=after)
    assert typical_ratios(Readings((first, second))) == pytest.approx({0: 0.8, 1: 0.5})
    read = Readings((at(0, 0.1, std=1.0), second))
    assert typical_ratios(read) == pytest.approx({0: 0.1, 1: 0.5})
    shrunk = Readings((first, at(1, 0.5, std=0.9)))
    assert typical_ratios(shrunk) == pytest.approx({0: 0.0, 1: 0.5})


def test_lengths_do_not_depend_on_the_size_of_the_weight() -> None:
    for std in (0.002, 0.2, 20.0):
        moved = 0.1 / std
        reading = at(1, moved, std=std * math.hypot(1, moved))
        length, step, name = longest(Readings((reading,)))
        assert (step, name) == (1, "fc0")
        assert length == pytest.approx(0.1 * math.sqrt(25))


def test_warm_up_and_ceiling() -> None:
    rates = {step: min(step + 1, 5) / 5 for step in range(20)}
    assert settled(Readings(lr=rates)) == 4
    assert settled(Readings(lr={step: 0.9**step for step in range(9)})) == 0
    assert settled(Readings()) == 0
    assert ceiling(Readings(loss={0: math.nan, 1: 2.0, 2: 9.0})) == 2.0
    assert math.isnan(ceiling(Readings()))


# weights that do not move


def test_first_layers_that_do_not_move() -> None:
    for factor, fires in ((1e-4 * OUT, False), (1e-4 * IN, True), (0.0, True)):
        moves = (0.01 * factor, 0.01, 0.01, 0.01)
        found = only("frozen_layers", Readings((at(2, *moves), at(5, *moves))))
        assert (found is not None) is fires
        if found is not None:
            assert (found.where, found.severity, found.step) == ("fc0", "warning", 5)
            assert "fc0 among the first layers does not move" in found.message
    late = (0.01, 0.01, 0.01, 0.0)
    assert only("frozen_layers", Readings((at(2, *late), at(5, *late)))) is None
    assert only("frozen_layers", Readings((at(1, 0.0, 0.1, 0.1), at(2, 0.0, 0.1, 0.1)))) is None
    assert only("frozen_layers", Readings((at(2, 0.0, 0.1), at(5, 0.0, 0.1)))) is None


@pytest.mark.parametrize(
    ("gradient", "cause"), [(0.1, "frozen weights"), (0.0, "depth"), (math.nan, "frozen weights")]
)
def test_why_they_do_not_move(gradient: float, cause: str) -> None:
    steps = tuple(at(step, 0.0, 0.1, 0.1, grad_rms=gradient) for step in (2, 5))
    found = only("frozen_layers", Readings(steps))
    assert found is not None
    assert found.causes[0] == cause
    assert ("optimizer" in found.remedy.split(";")[0]) is (gradient > 0)
    assert ("detach" in found.remedy.split(";")[0]) is math.isnan(gradient)


def test_weights_that_no_optimizer_holds() -> None:
    def step(number: int, rate: float) -> StepReading:
        rest = (weight(f"fc{i}", 0.01, lr=0.1) for i in range(1, 4))
        return StepReading(number, weights=(weight("fc0", grad_rms=1.0, lr=rate), *rest))

    found = only("frozen_layers", Readings((step(2, math.nan), step(5, math.nan))))
    assert found is not None
    assert found.where == "fc0"
    assert "the optimizer does not hold it" in found.likely_cause


@pytest.mark.parametrize(
    ("frozen", "facts", "severity"),
    [
        (0, {}, None),
        (1, {}, "warning"),
        (2, {}, "warning"),
        (3, {}, "error"),  # all but the last
        (3, {"numel": 30}, "warning"),  # less than half of the weights
        (4, {}, "error"),
        (1, {"numel": 1}, "info"),
        (1, {"trained": True}, None),
        (1, {"role": "position"}, None),
        (1, {"role": "embedding"}, None),
        (1, {"std": 0.0}, None),
    ],
)
def test_fresh_weights_that_take_no_gradient(
    frozen: int, facts: dict[str, Any], severity: str | None
) -> None:
    weights = tuple(
        weight(f"fc{i}", trainable=i >= frozen, **(facts if i < frozen else {})) for i in range(4)
    )
    found = only("frozen_layers", Readings((StepReading(0, weights=weights),)))
    assert (found.severity if found else None) == severity
    if found is not None:
        assert found.causes == ("frozen weights",)
        assert found.where == "fc0"
        assert "requires_grad_(True)" in found.remedy
        assert (f"(and {frozen - 1} more)" in found.message) is (frozen > 1)


def test_what_adapters_leave_frozen_is_no_finding() -> None:
    frozen = weight("base", trainable=False)
    adapter = weight("base.lora_A", role="lora_down")
    assert only("frozen_layers", Readings((StepReading(0, weights=(frozen, adapter)),))) is None
    loaded = Readings((StepReading(0, weights=(frozen,)),), trained=True)
    found = only("frozen_layers", loaded)
    assert found is not None
    assert found.severity == "warning"
