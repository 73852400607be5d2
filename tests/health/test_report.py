"""A report as text, as JSON and as a verdict."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init import audit
from lightning_init.architecture.readings import LayerReading, Readings, StepReading
from lightning_init.health.findings import Finding
from lightning_init.health.labels import shorten
from lightning_init.health.layers import textbook
from lightning_init.health.report import Report


def layer(name: str = "fc", **numbers: float) -> LayerReading:
    known = {"mean": 0.0, "std": 1.0, "rms": 1.0, "absmax": 3.0, "zeros": 0.0, "grad_rms": 1e-3}
    return LayerReading(name, "Linear", "", **{**known, **numbers})


def finding(severity: str = "error", **facts: object) -> Finding:
    known = {"value": 2.0, "limit": 1.0, "message": "is wrong", "likely_cause": "why"}
    return Finding("rule", severity, "fc", 3, **{**known, "remedy": "type this", **facts})


@pytest.mark.parametrize(
    ("numbers", "note"),
    [
        ({"std": 4.9}, ""),
        ({"std": 5.1}, "std>5"),
        ({"std": 0.102}, ""),
        ({"std": 0.098}, "std<0.1"),
        ({"absmax": 980.0}, ""),
        ({"absmax": 1020.0}, "|max|>1000"),
        ({"grad_rms": 1.02e-5}, ""),
        ({"grad_rms": 0.98e-5}, "grad<1e-5"),
        ({"grad_rms": math.nan}, ""),
        ({"std": 6.0, "absmax": 2000.0, "grad_rms": 0.0}, "std>5 |max|>1000 grad<1e-5"),
    ],
)
def test_textbook_columns(numbers: dict[str, float], note: str) -> None:
    reading = layer(**numbers)
    assert textbook(reading) == note
    report = Report((), Readings((StepReading(0, (reading,)),)))
    row, rest = str(report).splitlines()[1], str(report)
    # A star at each number that breaks a limit, and one line that says what it means.
    assert row.count("*") == len(note.split())
    assert ("beyond a textbook limit" in rest) == bool(note)
    assert row.endswith("  ok")
    assert report.to_dict()["steps"][0]["layers"][0]["textbook"] == note


def test_verdict_and_worst() -> None:
    empty = Report((), Readings())
    assert empty.worst is None
    assert empty.verdict() == "nothing was measured"
    one, two = finding(), finding("warning")
    assert Report((one,), Readings()).verdict() == (
        "ERROR rule at fc, step 3: is wrong\n  likely cause: why\n  fix: type this"
    )
    both = Report((one, two), Readings())
    assert both.worst is one
    assert both.errors == (one,)
    assert "and 1 more finding" in both.verdict()
    assert "and 2 more findings" in Report((one, two, two), Readings()).verdict()
    calm = Report((finding("info"),), Readings((StepReading(0, (layer(),)),), {0: 2.5, 1: 1.25}))
    assert calm.verdict() == "healthy: 1 layer read, loss 2.5 -> 1.25 in 2 steps"
    only = Report((), Readings((), {0: 2.5, 1: 1.25}))  # nothing was read but the losses
    assert only.verdict() == "healthy: loss 2.5 -> 1.25 in 2 steps"


def test_not_a_number_becomes_null(tmp_path: Path) -> None:
    readings = Readings(
        (StepReading(0, (layer(std=math.nan, absmax=math.inf),)),), {0: math.nan, 1: 0.5}
    )
    report = Report((finding(value=math.nan, limit=math.inf),), readings, ("blind: why",))
    report.save(tmp_path / "health.json")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = (tmp_path / "health.json").read_text(encoding="utf-8")
    data = json.loads(text, parse_constant=refuse)
    assert data == report.to_dict()
    assert data["loss"] == {"0": None, "1": 0.5}
    assert data["steps"][0]["layers"][0]["std"] is None
    assert data["steps"][0]["layers"][0]["grad_rms"] == 1e-3
    assert (data["findings"][0]["value"], data["findings"][0]["limit"]) == (None, None)
    assert data["findings"][0]["remedy"] == "type this"
    assert data["blind"] == ["blind: why"]
    assert data["verdict"] == report.verdict()


def test_text_fits_a_terminal() -> None:
    modules: list[nn.Module] = []
    for _ in range(40):
        modules += [nn.Linear(32, 32), nn.Tanh()]
    inner = nn.Sequential(*modules)
    for name in ("a_rather_long_attribute_name", "and_another_one_of_these"):
        outer = nn.Module()
        setattr(outer, name, inner)
        outer.forward = inner.forward
        inner = outer
    x = torch.randn(64, 32)
    report = audit(inner, lambda: 1e-9 * F.mse_loss(inner.forward(x), x * 1000))
    assert report.worst is not None
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "names below and_another_one_of_these.a_rather_long_attribute_name."
    assert "fix:" in str(report)
    worst = Report(
        (), Readings((StepReading(0, (layer("n" * 50, std=1.234e-50, absmax=1.234e38),)),))
    )
    assert max(map(len, str(worst).splitlines())) <= 80
    loudest = layer("n" * 50, std=1.234e38, absmax=1.234e38, grad_rms=1e-30)
    assert len(str(Report((), Readings((StepReading(0, (loudest,)),)))).splitlines()[1]) <= 80


def test_names_are_cut_in_the_middle() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("abcdefgh", 5) == "ab…gh"
    assert len(shorten("x" * 99, 26)) == 26
