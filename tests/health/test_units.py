"""Units that are alike, dead or saturated; samples that are no longer told apart."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.health.made import IN, OUT, after, at, layer, only, severity, step, weight

FLAT, FALLING = [2.3] * 12, [2.3 * 0.9**i for i in range(12)]
OTHERS = [weight("a.weight"), weight("b.weight"), weight("c.weight")]


# alike


def alike(number: int = 0, **facts: Any) -> Any:
    return at(step(number, weights=[*OTHERS, weight("d.weight", **facts)]))


@pytest.mark.parametrize(
    ("twins", "expected"),
    [(0.1 * IN, None), (0.1 * OUT, "warning"), (0.5 * IN, "warning"), (0.5 * OUT, "error")],
)
def test_twins(twins: float, expected: str | None) -> None:
    found = only("symmetric_units", alike(twins=twins))
    assert (found.severity if found else None) == expected
    if found is not None:
        assert found.where == "d.weight"
        assert f"{twins:.0%} of the 64 units of d.weight" in found.message
        assert found.causes[0] == "symmetry"
        assert "InitCallback" in found.remedy


@pytest.mark.parametrize(
    "facts",
    [
        {"grad_rms": 0.0},  # below a zero head, at step 0
        {"grad_rms": math.nan},
        {"trained": True},
        {"shape": (1, 64)},
        {"shape": (64,)},
        {"role": "embedding"},
        {"trainable": False},
        {"twins": math.nan},
    ],
)
def test_what_is_no_symmetry(facts: dict[str, Any]) -> None:
    assert severity("symmetric_units", alike(twins=1.0)) == "error"
    assert severity("symmetric_units", alike(**{"twins": 1.0} | facts)) is None


def test_a_zero_gradient_counts_after_the_first_step() -> None:
    assert severity("symmetric_units", alike(2, twins=1.0, grad_rms=0.0)) == "error"


def test_a_model_of_zeros() -> None:
    zeros = [replace(one, std=0.0, grad_rms=0.0, twins=1.0) for one in OTHERS]
    tails = [weight("d.weight"), weight("e.weight")]  # a head and the last layer of a branch
    assert severity("symmetric_units", at(step(weights=[*zeros, *tails]))) is None
    zeros += [replace(one, name=f"h.{one.name}") for one in zeros]
    assert severity("symmetric_units", at(step(weights=[*zeros, *tails]))) is None
    found = only("symmetric_units", at(step(weights=[*zeros, weight("d.weight")])))
    assert found is not None
    assert (found.severity, found.where) == ("error", "a.weight")
    assert "all values of a.weight (and 5 more tensors) are the same (0)" in found.message
    assert "6 of 7 matrices" in found.message
    other = [replace(one, mean=0.5, twins=0.0, grad_rms=1.0) for one in zeros]  # random biases
    assert severity("symmetric_units", at(step(weights=other))) == "error"
    assert severity("symmetric_units", at(step(1, weights=other))) is None
    loaded = [replace(one, trained=True) for one in zeros]
    assert severity("symmetric_units", at(step(weights=loaded))) is None
    ones = [replace(one, mean=0.5) for one in zeros[:2]]
    assert severity("symmetric_units", at(step(weights=[*ones, *tails]))) is None
    assert severity("symmetric_units", at(step(weights=[*ones, tails[0]]))) == "error"


# dead


def dying(dead: float, number: int = 0, lr: Any = None, **facts: Any) -> Any:
    grads = facts.pop("grads", (1.0, 1.0, 1.0))
    mean = facts.pop("mean", 0.0)
    nonlinear = after(dead=dead, **facts)
    layers = [
        layer("one", grad_norm=grads[0]),
        layer("two", grad_norm=grads[1], after=nonlinear, mean=mean),
        layer("out", grad_norm=grads[2]),
    ]
    before = replace(layers[1], after=after(dead=0.2))
    steps = [step(number, layers=layers)]
    if number:
        steps.insert(0, step(layers=[layers[0], before, layers[2]]))
    return at(*steps, lr=lr or {})


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"dead": 0.67 * IN}, None),
        ({"dead": 0.67 * OUT}, "warning"),
        ({"dead": math.nan}, None),
        ({"dead": 0.99}, "warning"),
        ({"dead": 1.0}, "error"),
        ({"dead": 1.0, "rows": 15}, None),
        ({"dead": 1.0, "rows": 16}, "error"),
        ({"dead": 1.0, "units": 15}, "warning"),  # a narrow gate may be shut by chance
        ({"dead": 1.0, "units": 16}, "error"),
        ({"dead": 1.0, "units": 2, "grads": (0.0, 0.0, 1.0)}, "error"),
        ({"dead": 1.0, "units": 2, "grads": (0.0, 0.0, 0.0)}, "warning"),  # a zero head
        ({"dead": 1.0, "number": 5}, "warning"),  # a branch died, the skip path learns
        ({"dead": 1.0, "number": 5, "grads": (0.0, 0.0, 1.0)}, "error"),
    ],
)
def test_dead_units(facts: dict[str, Any], expected: str | None) -> None:
    found = only("dead_units", dying(**facts))
    assert (found.severity if found else None) == expected
    if found is not None:
        assert found.where == "two"
        which = "all 64" if facts["dead"] == 1 and "units" not in facts else ""
        assert f"{which} relu units after two are zero" in found.message.replace(
            "the 64", "64"
        ) or ("units" in facts or facts["dead"] < 1)


def test_who_killed_them() -> None:
    by_bias = only("dead_units", dying(1.0, mean=-10.0))
    assert by_bias is not None
    assert by_bias.causes[0] == "bias"
    assert "mean -10 and std 1" in by_bias.likely_cause
    assert 'overrides={"two.bias": "zeros"}' in by_bias.remedy
    by_chance = only("dead_units", dying(1.0))
    assert by_chance is not None
    assert by_chance.causes[0] == "depth"
    by_rate = only("dead_units", dying(1.0, 5, {0: 0.5}))
    assert by_rate is not None
    assert by_rate.causes[0] == "learning rate"
    assert "20% of them were dead at step 0, 100% are after 5 steps at lr 0.5" in (
        by_rate.likely_cause
    )
    assert "lr=0.05" in by_rate.remedy


# saturated


def flat(share: float, slope: float = 1.0, loss: Any = None, **facts: Any) -> Any:
    layers = [layer(str(i), group="Linear", grad_norm=slope ** (3 - i), **facts) for i in range(4)]
    layers[1] = replace(layers[1], after=after("tanh", saturated=share))
    return at(step(layers=layers), loss=loss)


@pytest.mark.parametrize(
    ("share", "slope", "loss", "expected"),
    [
        (0.5 * IN, 0.1, FLAT, None),
        (0.5 * OUT, 1.0, FLAT, "info"),
        (0.5 * OUT, 0.5 * IN, FLAT, "warning"),
        (0.5 * OUT, 0.5 * OUT, FLAT, "info"),
        (0.9 * OUT, 0.4, FLAT, "error"),
        (0.9 * IN, 0.4, FLAT, "warning"),
        (0.9 * OUT, 0.4, FALLING, "warning"),
        (0.9 * OUT, 0.4, None, "warning"),
        (math.nan, 0.4, FLAT, None),
    ],
)
def test_saturation_explains_and_alarms_in_company_only(
    share: float, slope: float, loss: Any, expected: str | None
) -> None:
    found = only("saturated_units", flat(share, slope, loss))
    assert (found.severity if found else None) == expected
    if found is not None:
        assert found.where == "1"
        assert f"{share:.0%} of the tanh outputs after 1" in found.message
    assert severity("saturated_units", flat(share, slope, loss, is_output=True)) is None


# samples


def cosines(*values: float, steps: tuple[int, ...] = (0, 5, 20), loss: Any = None) -> Any:
    readings = [
        step(
            number,
            layers=[
                layer("one", sample_cosine=0.1),
                layer("out", sample_cosine=value, unit_cosine=0.0),
            ],
        )
        for number, value in zip(steps, values, strict=False)
    ]
    return at(*readings, loss=loss)


@pytest.mark.parametrize(
    ("values", "steps", "loss", "expected"),
    [
        ((0.9898,), (0,), FLAT, None),
        ((0.9902,), (0,), FLAT, "info"),
        ((0.99898,), (0,), FLAT, "info"),
        ((0.99902,), (0,), FLAT, "info"),
        ((1 - 0.9e-5, 0.5, 1 - 0.9e-5), (0, 5, 20), FLAT, "error"),
        ((1 - 0.9e-5, 0.5, 1 - 1.1e-5), (0, 5, 20), FLAT, "info"),
        ((1 - 0.9e-5, 0.5, 1 - 0.9e-5), (0, 5, 19), FLAT, "info"),
        ((1 - 0.9e-5, 0.5, 1 - 0.9e-5), (0, 5, 20), None, "warning"),
        ((1 - 0.9e-5, 0.5, 1 - 0.9e-5), (0, 5, 20), FALLING, "info"),
        ((0.5, 0.5, 1 - 0.9e-5), (0, 5, 20), FLAT, "info"),
        ((math.nan, math.nan), (0, 5), FLAT, "info"),
    ],
)
def test_samples_that_are_alike(
    values: tuple[float, ...], steps: tuple[int, ...], loss: Any, expected: str | None
) -> None:
    readings = cosines(*values, steps=steps, loss=loss)
    found = only("collapsed_samples", readings)
    if math.isnan(values[0]):
        assert found is None  # the layer before has 0.1
        return
    assert (found.severity if found else None) == expected
    if found is not None:
        assert found.where == "out"
        assert "the same for all samples" in found.message


@pytest.mark.parametrize(
    ("mean", "expected"),
    [((1 - 0.9e-5) ** 0.5, "error"), ((1 - 1.1e-5) ** 0.5, "info"), (0.9, None)],
)
def test_one_number_per_sample_has_a_sign_in_common(mean: float, expected: str | None) -> None:
    out = layer("out", sample_cosine=1.0, mean=mean, rms=1.0, std=(1 - mean**2) ** 0.5)
    readings = at(step(layers=[out]), step(20, layers=[out]), loss=FLAT)
    assert severity("collapsed_samples", readings) == expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([weight(std=0.0125 * IN), weight("b.weight")], "info"),  # half of them
        ([weight(std=0.0125 * IN)], "error"),
        ([weight(std=0.0125 * OUT)], "info"),
        ([weight(std=0.0125 * IN, trained=True)], "info"),
        ([weight(), weight("fc.bias", role="bias", mean=-3 * OUT, std=0.0)], "error"),
        ([weight(), weight("fc.bias", role="bias", mean=-3 * IN, std=0.0)], "info"),
    ],
)
def test_samples_that_are_alike_from_the_start(weights: Any, expected: str) -> None:
    out = [layer("out", sample_cosine=0.9995, unit_cosine=0.0)]
    found = only("collapsed_samples", at(step(layers=out, weights=weights)))
    assert found is not None
    assert found.severity == expected
    if expected == "error":
        assert found.causes[0] in ("init scale", "bias")
    assert severity("collapsed_samples", at(step(1, layers=out, weights=weights))) == "info"
