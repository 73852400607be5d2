"""Outputs and losses that do not fit each other, by values and by the function at the end."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_init.architecture.readings import (
    ActivationReading,
    LayerReading,
    LossReading,
    Readings,
    StepReading,
)
from lightning_init.health.findings import Finding
from lightning_init.health.registry import examine


def readings(kind: str, last: str = "", step: int = 0, **facts: Any) -> Readings:
    known = {"value": 2.3, "chance": 2.3, "prior": 2.2, "exact": True, "classes": 10, **facts}
    after = ActivationReading(last, 0.5, 0.1, 0.5, 1.0, 0.0) if last else None
    layer = LayerReading("head", "Linear", "", 0.0, 1.0, 1.0, 3.0, 0.0, is_output=True, after=after)
    return Readings((StepReading(step, (layer,), losses=(LossReading(kind, **known),)),))


def only(*args: Any, **facts: Any) -> Finding | None:
    found = examine(readings(*args, **facts), ("loss_mismatch",))
    assert len(found) <= 1
    return found[0] if found else None


CE, NLL = "cross-entropy over 10 classes", "negative log-likelihood over 10 classes"
BCE, LOGITS = "binary cross-entropy", "binary cross-entropy with logits"
UNIT = {"low": 0.01, "high": 0.99}


@pytest.mark.parametrize(
    ("kind", "last", "facts", "severity", "cause"),
    [
        (CE, "", {"outputs": "probabilities", **UNIT}, "error", "loss function"),
        (CE, "", {"outputs": "log-probabilities"}, "info", "loss function"),
        (CE, "", {"outputs": "logits"}, None, ""),
        (CE, "", {"outputs": ""}, None, ""),
        (CE, "sigmoid", {"outputs": "fractions", **UNIT}, "error", "output layer"),
        (CE, "", {"outputs": "fractions", **UNIT}, None, ""),  # by luck
        (CE, "sigmoid", {"outputs": "logits", "low": -9.0, "high": 9.0}, None, ""),  # elsewhere
        (
            CE,
            "relu",
            {"outputs": "nonnegative", "low": 0.0, "high": 4.0},
            "error",
            "output layer",
        ),
        (
            CE,
            "relu",
            {"outputs": "nonnegative", "low": 0.01, "high": 4.0},
            "warning",
            "output layer",
        ),
        (CE, "relu", {"outputs": "logits", "low": -1.0, "high": 4.0}, None, ""),
        (CE, "tanh", {"outputs": "logits", "low": -0.9, "high": 0.9}, "warning", "output layer"),
        (CE, "gelu", {"outputs": "logits", "low": -0.1, "high": 3.0}, None, ""),
        (NLL, "", {"outputs": "log-probabilities", "high": -0.1}, None, ""),
        (NLL, "", {"outputs": "logits", "high": 3.0}, "error", "loss function"),
        (NLL, "", {"outputs": "logits", "high": -0.1}, "warning", "loss function"),
        (NLL, "", {"outputs": "probabilities", **UNIT}, "error", "loss function"),
        (NLL, "", {"outputs": ""}, None, ""),
        (BCE, "sigmoid", {"outputs": "fractions", **UNIT}, None, ""),
        (LOGITS, "sigmoid", {"outputs": "fractions", **UNIT}, "error", "loss function"),
        (LOGITS, "", {"outputs": "fractions", **UNIT}, None, ""),
        (LOGITS, "", {"outputs": "logits", "target_low": 0.0, "target_high": 1.0}, None, ""),
        (LOGITS, "", {"target_low": -1.0, "target_high": 1.0}, "error", "target"),
        (LOGITS, "", {"target_low": 0.0, "target_high": 1.2}, "warning", "target"),
        ("some other loss", "sigmoid", {"outputs": "probabilities"}, None, ""),
    ],
)
def test_what_fits(
    kind: str, last: str, facts: dict[str, Any], severity: str | None, cause: str
) -> None:
    found = only(kind, last, **facts)
    assert (found.severity if found else None) == severity
    if found is not None:
        assert found.causes[0] == cause
        assert kind in found.message
        assert found.where == "loss"
        assert len(found.remedy) > 20


def test_a_softmax_twice_is_told_with_the_bound_it_sets() -> None:
    found = only(CE, outputs="probabilities")
    assert found is not None
    # One class at 1, nine at 0: -log(e / (e + 9)).
    assert f"cannot fall below {-math.log(math.e / (math.e + 9)):.3g}" in found.message
    assert "take the softmax out" in found.remedy
    assert found.causes == ("loss function", "output layer")


@pytest.mark.parametrize(
    ("last", "target", "severity"),
    [
        ("tanh", (-1.0, 1.0), None),
        ("tanh", (-1.0, 1 + 0.98 * 2 / 9), None),  # a tenth of the range
        ("tanh", (-1.0, 1 + 1.03 * 2 / 9), "warning"),
        ("tanh", (-1.0, 1 + 0.97 * 6 / 7), "warning"),  # three tenths
        ("tanh", (-1.0, 1 + 1.03 * 6 / 7), "error"),
        ("sigmoid", (0.0, 255.0), "error"),
        ("sigmoid", (-2.0, 2.0), "error"),
        ("relu", (0.0, 500.0), None),
        ("relu", (-0.09, 0.91), None),
        ("relu", (-0.11, 0.89), "warning"),
        ("relu", (-0.31, 0.69), "error"),
        ("gelu", (-9.0, 9.0), None),
        ("", (-9.0, 9.0), None),
        ("tanh", (math.nan, math.nan), None),
        ("tanh", (5.0, 5.0), None),
    ],
)
def test_targets_out_of_reach(last: str, target: tuple[float, float], severity: str | None) -> None:
    low, high = (0.0, 0.9) if last in ("sigmoid", "relu") else (-0.9, 0.9)
    found = only(
        "squared error", last, low=low, high=high, target_low=target[0], target_high=target[1]
    )
    assert (found.severity if found else None) == severity
    if found is not None:
        assert found.causes == ("output layer", "target")
        assert last in found.message


def test_a_function_that_the_outputs_leave_is_not_the_last() -> None:
    reach = {"target_low": -9.0, "target_high": 9.0}
    assert only("squared error", "tanh", low=-3.0, high=3.0, **reach) is None
    assert only("squared error", "tanh", low=-0.3, high=0.3, **reach) is not None


def test_the_worst_of_several_losses_is_named() -> None:
    (step,) = readings(CE, outputs="log-probabilities").steps
    (other,) = readings(NLL, outputs="logits", high=3.0).steps
    both = Readings((StepReading(0, step.layers, losses=(*step.losses, *other.losses)),))
    (found,) = examine(both, ("loss_mismatch",))
    assert found.severity == "error"
    assert "negative log-likelihood" in found.message


def test_what_follows_from_it_is_told_with_it() -> None:
    seen = readings(CE, outputs="probabilities", value=9.0)
    (found,) = examine(seen, ("loss_mismatch", "initial_loss"))
    assert [one.detector for one in found.consequences] == ["initial_loss"]
    assert found.consequences[0].causes[0] == "loss function"
