"""Each rule two percent inside and two percent outside each of its limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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
from lightning_init.health import registry
from lightning_init.health.findings import Finding
from lightning_init.health.registry import detector, entries, examine, get

IN, OUT = 0.98, 1.02  # either side of a limit


def layers(rms: list[float], grads: list[float] | None = None, group: str = "Linear") -> Any:
    grads = grads or [1.0] * len(rms)
    return tuple(
        LayerReading(str(i), "Linear", group, 0.0, r, r, 3 * r, 0.0, g, g)
        for i, (r, g) in enumerate(zip(rms, grads, strict=True))
    )


def of(step: int = 0, **parts: Any) -> Readings:
    return Readings((StepReading(step, **parts),))


def powers(factor: float, count: int) -> list[float]:
    return [factor**i for i in range(count)]


def only(name: str, readings: Readings) -> Finding | None:
    found = examine(readings, (name,))
    assert len(found) <= 1
    for finding in found:
        assert finding.detector == name
        assert finding.message
        assert finding.likely_cause
        assert finding.remedy
        assert str(finding).startswith(f"{finding.severity.upper()} {name} at {finding.where}")
    return found[0] if found else None


def severity(name: str, readings: Readings) -> str | None:
    found = only(name, readings)
    return found.severity if found else None


# forward growth


@pytest.mark.parametrize(
    ("factor", "count", "fires"),
    [
        (2.5 * IN, 6, False),
        (2.5 * OUT, 7, True),
        (0.5 / IN, 9, False),
        (0.5 / OUT, 9, True),
        (3.0, 5, False),  # 81 in all
        (3.2, 5, True),  # 105 in all
        (0.31, 5, True),
        (0.33, 5, False),
        ((1e5 * OUT) ** (1 / 19), 20, True),
        ((1e5 * IN) ** (1 / 19), 20, False),
        ((1e-5 / OUT) ** (1 / 19), 20, True),
        ((1e-5 / IN) ** (1 / 19), 20, False),
        (10.0, 3, False),  # too few to speak of a trend
    ],
)
def test_forward_growth_per_layer_and_in_all(factor: float, count: int, fires: bool) -> None:
    found = only("forward_growth", of(layers=layers(powers(factor, count))))
    assert (found is not None) is fires
    if found is None:
        return
    assert found.severity == "error"
    assert found.value == pytest.approx(factor)
    assert f"x{factor:.3g} per layer over {count} layers" in found.message
    assert f"x{factor ** (count - 1):.2g} in all" in found.message
    exploding = factor > 1
    assert found.where == ("0" if exploding else str(count - 1))
    assert ("explode" if exploding else "vanish") in found.message
    assert ("too large" if exploding else "too small") in found.likely_cause
    assert "InitCallback(" in found.remedy


@pytest.mark.parametrize(
    ("ratio", "fires"),
    [(20 * OUT, True), (20 * IN, False), (1 / 20 / OUT, True), (0.05 / IN, False)],
)
def test_forward_jump(ratio: float, fires: bool) -> None:
    rms = [1.0, 1.0, 1.0, ratio, ratio, ratio]
    found = only("forward_growth", of(layers=layers(rms)))
    assert (found is not None) is fires
    if found is not None:
        assert (found.severity, found.where) == ("error", "3")
        assert f"the output of 3 is x{ratio:.3g} that of 2" in found.message
        assert 'overrides={"3.*"' in found.remedy


def test_growth_compares_one_group_only_and_passes_over_zeros() -> None:
    rms = powers(4.0, 8)
    assert only("forward_growth", of(layers=layers(rms, group=""))) is None
    assert only("backward_growth", of(layers=layers([1.0] * 8, rms, group=""))) is None
    zeros = layers([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    assert only("forward_growth", of(layers=zeros)) is None
    assert only("backward_growth", of(layers=layers([1.0] * 6, [0.0] * 6))) is None
    assert only("backward_growth", of(layers=layers([1.0] * 6, [math.nan] * 6))) is None


def test_growth_is_named_at_the_first_step_that_shows_it() -> None:
    fine, bad = layers([1.0] * 8), layers(powers(4.0, 8))
    readings = Readings((StepReading(0, fine), StepReading(5, bad), StepReading(10, bad)))
    found = only("forward_growth", readings)
    assert found is not None
    assert found.step == 5


# backward growth: from the last layer to the first


@pytest.mark.parametrize(
    ("factor", "count", "fires"),
    [
        (2.5 * IN, 12, False),
        (2.5 * OUT, 12, True),
        (0.35 / IN, 9, False),
        (0.35 / OUT, 9, True),
        (3.0, 7, False),  # 729 in all
        (3.2, 7, True),  # 1074 in all
        ((1e6 * OUT) ** (1 / 29), 30, True),
        ((1e6 * IN) ** (1 / 29), 30, False),
        ((1e-6 / OUT) ** (1 / 29), 30, True),
        ((1e-6 / IN) ** (1 / 29), 30, False),
    ],
)
def test_backward_growth_per_layer_and_in_all(factor: float, count: int, fires: bool) -> None:
    grads = powers(factor, count)[::-1]
    found = only("backward_growth", of(layers=layers([1.0] * count, grads)))
    assert (found is not None) is fires
    if found is not None:
        assert (found.severity, found.where) == ("error", "0")
        assert found.value == pytest.approx(factor)
        assert f"x{factor:.3g} per layer from {count - 1} to 0" in found.message
        assert ("explode" if factor > 1 else "vanish") in found.message
        assert "orthogonal" in found.remedy


def test_one_jump_of_the_gradient_is_no_growth() -> None:
    grads = [0.17, 6e-7, 1.7e-6, 8e-7, 1.7e-6]  # blocks behind a layer scale of 1e-5
    assert severity("backward_growth", of(layers=layers([1.0] * 5, grads))) is None
    grads = [0.17, 6e-3, 1.7e-4, 8e-6, 1.7e-7]
    assert severity("backward_growth", of(layers=layers([1.0] * 5, grads))) == "error"


@pytest.mark.parametrize(
    ("step", "later", "expected"), [(0, 0.5, "error"), (5, 0.5, "warning"), (5, 1.0, "error")]
)
def test_gradients_that_explode_while_the_loss_falls(
    step: int, later: float, expected: str
) -> None:
    steps = of(step, layers=layers([1.0] * 9, powers(4.0, 9)[::-1])).steps
    losses = {at: 1.0 if at < 5 else later for at in range(10)}
    assert severity("backward_growth", Readings(steps, losses)) == expected


# weights against the plan


def weight(std: float, mean: float = 0.0, n: int = 10_000, **expected: float) -> Readings:
    reading = WeightReading(
        "w",
        n,
        mean,
        std,
        expected.get("expected_mean", 0.0),
        expected.get("expected_std", 0.1),
        drawn="normal, std 0.1",
    )
    return of(weights=(reading,))


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (1.25 * IN, None),
        (1.25 * OUT, "warning"),
        (1 / 1.25 / IN, None),
        (1 / 1.25 / OUT, "warning"),
        (3 * IN, "warning"),
        (3 * OUT, "error"),
        (1 / 3 / IN, "warning"),
        (1 / 3 / OUT, "error"),
        (0.0, "error"),
    ],
)
def test_std_against_the_plan(ratio: float, expected: str | None) -> None:
    found = only("scheme_audit", weight(0.1 * ratio))
    assert (found.severity if found else None) == expected
    if found is not None:
        assert found.where == "w"
        assert f"std {0.1 * ratio:.3g}, drawn with 0.1 (normal, std 0.1)" in found.message
        assert "after the initialization" in found.likely_cause
        assert "InitCallback" in found.remedy


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(0.25 * IN, None), (0.25 * OUT, "warning"), (IN, "warning"), (-OUT, "error")],
)
def test_mean_against_the_plan(shift: float, expected: str | None) -> None:
    found = only("scheme_audit", weight(0.1, 0.5 + 0.1 * shift, expected_mean=0.5))
    assert (found.severity if found else None) == expected
    if found is not None:
        assert f"mean {0.5 + 0.1 * shift:.3g}, drawn with 0.5" in found.message


def test_few_values_may_deviate_by_chance() -> None:
    assert severity("scheme_audit", weight(0.2, n=12)) is None  # 4.9 standard errors
    assert severity("scheme_audit", weight(0.2, n=13)) == "warning"  # 5.1
    assert severity("scheme_audit", weight(0.1, 0.05, n=96)) is None  # 4.9
    assert severity("scheme_audit", weight(0.1, 0.05, n=104)) == "warning"  # 5.1


@pytest.mark.parametrize(
    ("off", "expected"),
    [(1e-6 * IN, None), (1e-6 * OUT, "warning"), (IN, "warning"), (OUT, "error")],
)
def test_constants_against_the_plan(off: float, expected: str | None) -> None:
    for std, mean in ((off, 1.0), (0.0, 1.0 + off)):
        readings = weight(std, mean, expected_std=0.0, expected_mean=1.0)
        if std == 0.0 and off < 1e-3:
            continue  # 1 + 1e-6 is too near 1 for two percent
        assert severity("scheme_audit", readings) == expected


def test_rounding_is_no_deviation() -> None:
    kept = weight(0.0, 0.10009765625, expected_std=0.0, expected_mean=0.1)  # 0.1 in bfloat16
    assert severity("scheme_audit", kept) is None
    scaled = weight(0.0, 0.97, expected_std=1.2e-7, expected_mean=0.97)  # a mean of equal values
    assert severity("scheme_audit", scaled) is None
    other = weight(0.0, 0.5, expected_std=1.2e-7, expected_mean=0.97)
    assert severity("scheme_audit", other) == "warning"


def test_the_plan_speaks_of_the_weights_before_the_first_step() -> None:
    reading = weight(9.0).steps[0].weights
    assert only("scheme_audit", of(3, weights=reading)) is None
    assert only("scheme_audit", weight(9.0, expected_std=math.nan)) is None


# the first loss


def loss(value: float, **facts: Any) -> Readings:
    known = {"kind": "k", "chance": 2.0, "prior": 1.9, "exact": True, **facts}
    return of(losses=(LossReading(value=value, **known),))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2.0 * 1.5 * IN, None),
        (2.0 * 1.5 * OUT, "warning"),
        (2.0 * 25 * IN, "warning"),
        (2.0 * 25 * OUT, "error"),
        (1.9 * 0.8 / IN, None),
        (1.9 * 0.8 / OUT, "warning"),
        (1.9 * 0.5 / IN, "warning"),
        (1.9 * 0.5 / OUT, "error"),
    ],
)
def test_first_loss_against_chance(value: float, expected: str | None) -> None:
    found = only("initial_loss", loss(value))
    assert (found.severity if found else None) == expected
    if found is not None:
        assert found.where == "loss"
        assert f"k starts at {value:.4g}" in found.message
        high = value > 2
        assert (f"{value / 2:.2f} times the 2 of" if high else "below the 1.9") in found.message
        assert ("output layer" if high else "target is among the inputs") in found.likely_cause
        assert found.value == pytest.approx(value / (2 if high else 1.9))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (20 * IN, None),
        (20 * OUT, "warning"),
        (2000 * IN, "warning"),
        (2000 * OUT, "error"),
        (0.001, None),
    ],
)
def test_first_squared_error_by_order_of_magnitude(value: float, expected: str | None) -> None:
    assert severity("initial_loss", loss(value, exact=False)) == expected


def test_a_first_loss_that_the_readings_explain_is_an_error_sooner() -> None:
    large = WeightReading("w", 100, 0.0, 1.0, role="weight", fan_in=100.0)
    for value, expected in ((3.0 * IN, None), (3.0 * OUT, "error")):
        (first,) = loss(value).steps
        known = of(losses=first.losses, weights=(large,))
        assert severity("initial_loss", known) == expected
        assert severity("initial_loss", of(losses=first.losses)) == (expected and "warning")
    for value, expected in ((40.0 * IN, "warning"), (40.0 * OUT, "error")):
        (first,) = loss(value, exact=False).steps
        known = of(losses=first.losses, weights=(large,))
        assert severity("initial_loss", known) == expected
        assert severity("initial_loss", of(losses=first.losses)) == "warning"


def test_when_the_first_loss_says_nothing() -> None:
    low = loss(0.1)
    assert severity("initial_loss", low) == "error"
    assert severity("initial_loss", Readings(low.steps, trained=True)) is None
    assert severity("initial_loss", of(1, losses=low.steps[0].losses)) is None
    assert severity("initial_loss", loss(0.0001, prior=0.0)) is None  # one class in the batch
    assert severity("initial_loss", loss(math.nan)) is None
    assert severity("initial_loss", Readings(loss(51.0).steps, trained=True)) == "error"


# the course of the loss


def course(*values: float) -> Readings:
    return Readings(loss=dict(enumerate(values)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1.0, 0.5, 1.5 * IN, 1.5 * IN, 1.5 * IN), None),
        ((1.0, 0.5, 1.5 * OUT), "warning"),
        ((1.0, 0.5, 1.5 * OUT, 1.5 * OUT, 0.5), "warning"),
        ((1.0, 0.5, 1.6, 0.5, 1.6, 0.5, 1.6), "warning"),
        ((1.0, 0.5, 1.6, 1.6, 1.6), "error"),
        ((1.0, 0.2, IN, IN, IN), None),  # not above its start
        ((1.0, 0.2, OUT, OUT, OUT), "error"),
        ((-1.0, -5.0, 3.0, 3.0, 3.0), None),  # ratios of negative losses mean nothing
        ((1.0, math.nan, 3.5, 3.5, 3.5), "error"),
    ],
)
def test_loss_that_blows_up(values: tuple[float, ...], expected: str | None) -> None:
    found = only("loss_blow_up", course(*values))
    assert (found.severity if found else None) == expected
    if found is not None:
        assert found.where == "loss"
        assert "learning rate" in found.likely_cause
        assert "learning rate" in found.remedy


def test_a_blow_up_is_described_by_its_numbers() -> None:
    found = only("loss_blow_up", course(1.0, 0.5, 1.6, 1.7, 1.8))
    assert found is not None
    assert found.step == 4
    assert found.value == pytest.approx(3.6)
    assert (
        "the loss is 1.8, above its start and chance, and 3.6 times its lowest value 0.5"
        in found.message
    )
    once = only("loss_blow_up", course(1.0, 0.5, 2.0, 0.01))
    assert once is not None
    assert "4 times its lowest value 0.5, once" in once.message


# not a number


def broken(**which: float) -> Any:
    names = ("mean", "std", "rms", "absmax", "zeros")
    values = {**dict.fromkeys(names, 1.0), **which}
    return LayerReading("1", "Linear", "", **values)


@pytest.mark.parametrize("which", [{"rms": math.nan}, {"rms": math.inf}, {"absmax": math.inf}])
def test_the_first_output_that_is_not_finite_is_named(which: dict[str, float]) -> None:
    fine = layers([1.0])
    readings = of(layers=(*fine, broken(**which), *layers([math.nan] * 4)[2:]))
    found = only("non_finite", readings)
    assert found is not None
    assert (found.severity, found.where, found.step) == ("error", "1", 0)
    assert "the output of 1 is not finite" in found.message
    assert "torch.isfinite" in found.remedy


def test_weights_and_losses_that_are_not_finite() -> None:
    bad = WeightReading("w", 4, 0.0, 1.0, finite=False)
    found = only("non_finite", of(3, weights=(bad,)))
    assert found is not None
    assert (found.where, found.step) == ("w", 3)
    assert "learning rate" in found.likely_cause
    found = only("non_finite", course(1.0, 1.0, math.inf))
    assert found is not None
    assert (found.where, found.step) == ("loss", 2)


def test_a_gradient_scaler_may_skip_a_few_steps() -> None:
    gradient = WeightReading("w", 4, 0.0, 1.0, finite=False)
    value = WeightReading("w", 4, math.nan, math.nan, finite=False)
    for reading, expected in ((gradient, None), (value, "error")):
        steps = (StepReading(0, weights=(reading,)),)
        assert severity("non_finite", Readings(steps, skips_allowed=True)) == expected
    nan = math.nan
    for count, expected in ((4, None), (5, "error")):
        losses = dict(enumerate([nan] * count))
        assert severity("non_finite", Readings(loss=losses, skips_allowed=True)) == expected


# all of them


def test_what_growth_explains_is_reported_with_it() -> None:
    steps = StepReading(
        0, layers(powers(4.0, 8), powers(4.0, 8)[::-1]), (), loss(5.0).steps[0].losses
    )
    (root,) = examine(Readings((steps,), {0: 3.0, 1: 0.5, 2: 6.0}))
    assert (root.severity, root.detector) == ("error", "forward_growth")
    followed = [(finding.severity, finding.detector) for finding in root.consequences]
    assert followed == [
        ("error", "backward_growth"),
        ("warning", "initial_loss"),
        ("warning", "loss_blow_up"),
    ]


def test_limits_are_arguments() -> None:
    detect: Callable[..., Any] = get("forward_growth").function
    readings = of(layers=layers(powers(2.0, 9)))
    assert list(detect(readings)) == []
    assert len(list(detect(readings, grow=1.9))) == 1
    assert set(get("loss_blow_up").parameters) == {"factor", "above", "steps"}


def test_registry() -> None:
    names = [entry.name for entry in entries("default")]
    known = ["non_finite", "scheme_audit", "forward_growth", "backward_growth", "initial_loss"]
    assert [name for name in names if name in known] == known
    assert all(entry.summary for entry in entries())
    with pytest.raises(ValueError, match="unknown detector 'forward_grow': did you mean 'forward_"):
        get("forward_grow")


def test_a_loss_below_chance_does_not_blow_up_after_a_lucky_start() -> None:
    known = StepReading(0, losses=loss(1.0).steps[0].losses)  # chance is above 1.5
    lucky = Readings((known,), {0: 0.25, 1: 0.13, 2: 0.7, 3: 0.7, 4: 0.7, 5: 0.7})
    assert list(get("loss_blow_up").function(lucky)) == []
    worse = Readings((known,), {step: value * 10 for step, value in lucky.loss.items()})
    assert len(list(get("loss_blow_up").function(worse))) == 1


def test_with_two_classes_a_factor_above_chance_is_not_enough() -> None:
    def start(value: float) -> Any:
        reading = LossReading("cross-entropy over 2 classes", value, 0.693, 0.693, exact=True)
        large = WeightReading("w", 100, 0.0, 1.0, role="weight", fan_in=100.0)
        readings = of(losses=(reading,), weights=(large,))
        return [f.severity for f in get("initial_loss").function(readings)]

    assert start(1.19 * IN) == []  # 1.7 times chance, half a nat above
    assert start(1.194 * OUT) == ["warning"]
    assert start(1.693 * IN) == ["warning"]
    assert start(1.693 * OUT) == ["error"]


def test_layers_that_norms_rescale_are_not_compared_forward() -> None:
    chain = layers([255.0, 1.0, 1.0, 1.0, 1.0])
    assert len(list(get("forward_growth").function(of(layers=chain)))) == 1
    rescaled = tuple(replace(layer, rescaled=True) for layer in chain)
    assert list(get("forward_growth").function(of(layers=rescaled))) == []


def test_a_rule_that_fails_is_said_and_the_others_go_on() -> None:
    @detector(order=1, explains=("*",))
    def broken(readings: Readings) -> Iterator[Finding]:
        """Divides by zero."""
        yield from ()
        raise ZeroDivisionError("by zero")

    try:
        found = examine(of(layers=layers(powers(3.0, 9))), ["broken", "forward_growth"])
    finally:
        del registry._REGISTRY["broken"]
    assert {f.detector for f in found} == {"broken", "forward_growth"}
    (failed,) = [f for f in found if f.detector == "broken"]
    assert failed.severity == "info"
    assert "ZeroDivisionError: by zero" in failed.message


def test_a_limit_without_a_name_is_refused_with_what_to_type() -> None:
    with pytest.raises(TypeError, match=r'detectors=\{"dead_units": \{"limit": 0.5\}\}'):
        registry.rules({"dead_units": 0.5})  # type: ignore[dict-item]
