"""Data that are not about N(0, 1): named as such, each limit from both sides."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_init.health.registry import examine
from tests.health.made import IN, OUT, after, at, data, layer, only, severity, step, weight

FLAT, FALLING = [2.3] * 12, [2.3 * 0.9**i for i in range(12)]


def given(**facts: Any) -> Any:
    return at(step(inputs=[data(**facts)]))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"rms": 3 * IN}, None),
        ({"rms": 3 * OUT}, "info"),
        ({"rms": 10 * IN}, "info"),
        ({"rms": 10 * OUT}, "warning"),
        ({"rms": 500.0}, "warning"),
        ({"mean": 4.0, "std": 0.8 / IN}, None),
        ({"mean": -4.0, "std": 0.8 / OUT}, "warning"),
        ({"mean": 0.98, "std": 0.1}, None),  # a white image in [0, 1]
        ({"mean": 1.02, "std": 0.1}, "warning"),
        ({"absmax": 0.02 * OUT}, None),
        ({"absmax": 0.02 * IN}, "warning"),
        ({"absmax": 0.0}, None),  # nothing at all is another fault
        ({"spread": 1e3 * IN, "absmax": 20.0}, None),
        ({"spread": 1e3 * OUT, "absmax": 20.0}, "warning"),
        ({"spread": 1e9, "absmax": 10 * IN}, None),  # a pixel that is hardly ever lit
        ({"spread": 1e9, "absmax": 10 * OUT}, "warning"),
        ({"rms": 0.5, "mean": 0.3, "std": 0.4, "absmax": 1.0}, None),  # an image in [0, 1]
        ({"rms": 0.01, "mean": 1e-4, "std": 0.01, "absmax": 1.0}, None),  # one of 10 000
        ({"rms": 500.0, "finite": False}, None),
    ],
)
def test_limits(facts: dict[str, float], expected: str | None) -> None:
    readings = given(**facts)
    assert severity("input_scale", readings) == expected
    assert severity("input_scale", given(**facts, normalized=True)) is None
    found = only("input_scale", readings)
    if found is not None:
        assert found.where == "fc"
        assert found.causes[0] == "data scale"
        assert "(x - mean) / std" in found.remedy


@pytest.mark.parametrize(
    ("rms", "loss", "saturated", "expected"),
    [
        (50 * OUT, FLAT, 0.0, "error"),
        (50 * IN, FLAT, 0.0, "warning"),
        (50 * OUT, FALLING, 0.0, "warning"),
        (50 * OUT, FLAT[:7], 0.0, "warning"),  # too few to say
        (50 * OUT, FALLING, 0.5 * OUT, "error"),
        (50 * OUT, FALLING, 0.5 * IN, "warning"),
    ],
)
def test_huge_data_are_an_error_where_they_do_harm(
    rms: float, loss: list[float], saturated: float, expected: str
) -> None:
    first = layer(rms=40.0, after=after("tanh", saturated=saturated))
    readings = at(step(inputs=[data(rms=rms)], layers=[first]), loss=loss)
    found = only("input_scale", readings)
    assert found is not None
    assert found.severity == expected
    assert "the first outputs have rms 40 instead of about 1" in found.message


def test_recurrent_layers_saturate() -> None:
    gates = weight("fc.weight_hh", role="recurrent")
    for rms, expected in ((50 * OUT, "error"), (50 * IN, "warning")):
        readings = at(step(inputs=[data(rms=rms)], weights=[gates]), loss=FALLING)
        assert severity("input_scale", readings) == expected


def test_pixels_are_called_so() -> None:
    found = only("input_scale", given(mean=33.3, std=78.6, rms=85.0, absmax=255.0))
    assert found is not None
    assert "pixels up to 255 (mean 33.3, std 78.6)" in found.message
    assert "x / 255" in found.remedy
    negative = only("input_scale", given(mean=-33.3, std=78.6, rms=85.0, absmax=255.0))
    assert negative is not None
    assert "pixels" not in str(negative)


def test_the_largest_input_is_named_and_the_others_counted() -> None:
    inputs = [data("a", rms=20.0), data("b", rms=90.0), data("c"), data("d", rms=4.0)]
    found = only("input_scale", at(step(inputs=inputs)))
    assert found is not None
    assert found.where == "b"
    assert "b (and 2 more inputs)" in found.likely_cause


def test_what_follows_is_one_finding_and_growth_does_not_follow() -> None:
    chain = [layer(str(i), group="Linear", rms=8.0**i) for i in range(6)]
    dead = layer("fc", after=after(dead=1.0))
    readings = at(step(inputs=[data(rms=90.0)], layers=[dead]))
    (root,) = examine(readings)
    assert (root.detector, root.severity) == ("input_scale", "error")
    assert [one.detector for one in root.consequences] == ["dead_units"]
    growing = examine(at(step(inputs=[data(rms=90.0)], layers=chain)))
    assert [one.detector for one in growing] == ["forward_growth", "input_scale"]


@pytest.mark.parametrize(
    ("rms", "first", "expected"),
    [(50 * OUT, 20 * OUT, "error"), (50 * OUT, 20 * IN, "warning"), (50 * IN, 100.0, "warning")],
)
def test_data_that_were_most_of_the_first_loss(rms: float, first: float, expected: str) -> None:
    losses = [first, *[1.0] * 11]
    assert severity("input_scale", at(step(inputs=[data(rms=rms)]), loss=losses)) == expected
