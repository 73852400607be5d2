"""Readings made up for tests: a healthy layer, weight or input with some numbers replaced."""

from __future__ import annotations

from typing import Any

from lightning_init.architecture.readings import (
    ActivationReading,
    AttentionReading,
    InputReading,
    LayerReading,
    Readings,
    StepReading,
    WeightReading,
)
from lightning_init.health.findings import Finding
from lightning_init.health.registry import Used, examine

IN, OUT = 0.98, 1.02  # either side of a limit


def layer(name: str = "fc", **facts: Any) -> LayerReading:
    known = {"mean": 0.0, "std": 1.0, "rms": 1.0, "absmax": 3.0, "zeros": 0.0}
    known |= {"grad_norm": 1.0, "grad_rms": 0.01}
    return LayerReading(name, facts.pop("kind", "Linear"), facts.pop("group", ""), **known | facts)


def after(function: str = "relu", **facts: Any) -> ActivationReading:
    known = {"mean": 0.4, "std": 0.6, "rms": 0.7, "absmax": 3.0, "zeros": 0.5}
    return ActivationReading(function, **known | {"units": 64, "rows": 64} | facts)


def weight(name: str = "fc.weight", **facts: Any) -> WeightReading:
    known = {"numel": 4096, "mean": 0.0, "std": 0.125, "grad_rms": 0.01, "role": "weight"}
    known |= {"module": name.rpartition(".")[0], "shape": (64, 64), "fan_in": 64.0, "twins": 0.0}
    return WeightReading(name, **known | {"names": (name,)} | facts)


def data(name: str = "fc", **facts: Any) -> InputReading:
    known = {"mean": 0.0, "std": 1.0, "rms": 1.0, "absmax": 3.0}
    return InputReading(name, **known | facts)


def attends(name: str = "h.0", **facts: Any) -> AttentionReading:
    known = {"entropy": 0.97, "logit_max": 2.0, "logit_std": 0.5, "keys": 16.0}
    return AttentionReading(name, **known | facts)


def at(*steps: StepReading, loss: Any = None, **facts: Any) -> Readings:
    return Readings(steps, dict(enumerate(loss or ())), **facts)


def step(number: int = 0, **parts: Any) -> StepReading:
    return StepReading(number, **{key: tuple(value) for key, value in parts.items()})


def only(name: str, readings: Readings, **limits: float) -> Finding | None:
    """The finding of one rule; what all findings must say is checked."""
    found = examine(readings, Used({name: dict(limits)}))
    assert len(found) <= 1
    for finding in found:
        assert finding.detector == name
        assert all((finding.message, finding.likely_cause, finding.remedy, finding.causes))
        assert str(finding).startswith(f"{finding.severity.upper()} {name} at {finding.where}")
    return found[0] if found else None


def severity(name: str, readings: Readings, **limits: float) -> str | None:
    found = only(name, readings, **limits)
    return found.severity if found else None
