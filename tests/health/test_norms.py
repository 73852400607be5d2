"""Gamma and beta of norm layers, either side of each limit."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_init.architecture.readings import (
    LayerReading,
    Readings,
    StepReading,
    WeightReading,
)
from lightning_init.health.findings import Finding
from lightning_init.health.registry import examine

IN, OUT = 0.98, 1.02


def norm(role: str, mean: float, std: float = 0.0, **facts: Any) -> WeightReading:
    return WeightReading(f"norm.{role}", 64, mean, std, role=role, **facts)


def only(weight: WeightReading, takes: float = 1.0, step: int = 0) -> Finding | None:
    layer = LayerReading("fc", "Linear", "", 0.0, 1.0, 1.0, 3.0, 0.0, input_rms=takes)
    found = examine(Readings((StepReading(step, (layer,), (weight,)),)), ("norm_values",))
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize(
    ("role", "mean", "std", "severity"),
    [
        ("norm_scale", 1.0, 0.0, None),
        ("norm_scale", 10 * IN, 0.0, None),
        ("norm_scale", 10 * OUT, 0.0, "warning"),
        ("norm_scale", 30 * IN, 0.0, "warning"),
        ("norm_scale", 30 * OUT, 0.0, "error"),
        ("norm_scale", 0.01 * OUT, 0.0, None),
        ("norm_scale", 0.01 * IN, 0.0, "warning"),
        ("norm_scale", 0.0, 0.0, None),  # the end of a residual branch
        ("norm_scale", -1.0, 0.0, "warning"),
        ("norm_scale", 0.0, 1.0, "warning"),  # N(0, 1)
        ("norm_scale", 1.0, 0.1, None),
        ("norm_shift", 0.0, 0.0, None),
        ("norm_shift", 2 * IN, 0.0, None),
        ("norm_shift", -2 * OUT, 0.0, "warning"),
        ("norm_shift", 0.0, 5 * IN, "warning"),
        ("norm_shift", -5 * OUT, 0.0, "error"),
        ("bias", -50.0, 0.0, None),
    ],
)
def test_values(role: str, mean: float, std: float, severity: str | None) -> None:
    found = only(norm(role, mean, std))
    assert (found.severity if found else None) == severity
    if found is not None:
        assert found.where == f"norm.{role}"
        assert found.causes == ("normalization",)
        assert ("gamma" if role == "norm_scale" else "beta") in found.message
        assert f'"norm.{role}": "{"ones" if role == "norm_scale" else "zeros"}"' in found.remedy


def test_a_gamma_of_zero_counts_where_it_cuts_the_signal_off() -> None:
    zero = norm("norm_scale", 0.0)
    found = only(zero, takes=0.0)
    assert found is not None
    assert found.severity == "error"
    assert "fc takes nothing but zeros" in found.message
    assert "residual branches" in found.likely_cause
    planned = norm("norm_scale", 0.0, expected_mean=0.0, expected_std=0.0)
    assert only(planned, takes=0.0) is None
    assert only(norm("norm_scale", 1.0), takes=0.0) is None


def test_loaded_weights_and_later_steps_are_not_judged() -> None:
    assert only(norm("norm_scale", 99.0, trained=True)) is None
    assert only(norm("norm_scale", 99.0), step=5) is None
    assert only(norm("norm_scale", math.nan, finite=False)) is None


def test_the_worst_is_named_and_the_others_counted() -> None:
    weights = (norm("norm_shift", 3.0), norm("norm_scale", 99.0))
    (found,) = examine(Readings((StepReading(0, weights=weights),)), ("norm_values",))
    assert found.where == "norm.norm_scale"
    assert found.severity == "error"
    assert "(and 1 more tensor)" in found.message


@pytest.mark.parametrize(
    ("means", "severity"),
    [
        ((0.05 * IN, 0.05 * IN), "error"),
        ((0.05 * IN, 0.05 * OUT), None),
        ((0.005, 0.005), "error"),
        ((0.005, 1.0), "warning"),
        ((20 * OUT, 20 * OUT), "error"),
        ((20 * OUT, 20 * IN), "warning"),
        ((0.0, 0.0), None),  # 1 + gamma
    ],
)
def test_all_norms_alike(means: tuple[float, ...], severity: str | None) -> None:
    for trained in (False, True):
        weights = tuple(norm("norm_scale", mean, trained=trained) for mean in means)
        found = examine(Readings((StepReading(0, weights=weights),)), ("norm_values",))
        assert (found[0].severity if found else None) == (None if trained else severity)


def test_small_values_around_zero_are_one_plus_gamma() -> None:
    weights = (norm("norm_scale", 0.001, 0.02), norm("norm_scale", -0.001, 0.02))
    found = examine(Readings((StepReading(0, weights=weights),)), ("norm_values",))
    assert [one.severity for one in found if one.severity == "error"] == []
