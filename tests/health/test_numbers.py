"""NaN and infinity: the first place, and what it came from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init import audit
from lightning_init.architecture.readings import (
    ActivationReading,
    InputReading,
    LayerReading,
    Readings,
    StepReading,
    WeightReading,
)
from lightning_init.health.findings import Finding
from lightning_init.health.registry import examine

NAN = math.nan


def only(readings: Readings) -> Finding | None:
    found = examine(readings, ("non_finite",))
    assert len(found) <= 1
    return found[0] if found else None


def layer(name: str, rms: float = 1.0, **facts: Any) -> LayerReading:
    return LayerReading(name, "Linear", "", 0.0, rms, rms, 3 * rms, 0.0, **facts)


def test_a_batch_is_named_before_what_it_broke() -> None:
    given = InputReading("fc", NAN, NAN, NAN, NAN, finite=False)
    found = only(Readings((StepReading(0, (layer("fc", NAN),), inputs=(given,)),)))
    assert found is not None
    assert (found.where, found.causes[0]) == ("data", "data")
    assert "what fc takes from outside is not finite" in found.message
    assert "torch.isfinite" in found.remedy


@pytest.mark.parametrize(
    ("bad", "losses", "where"),
    [
        ((7,), {7: NAN}, "data"),
        ((), {7: NAN}, "loss"),
        ((3,), {3: 2.0, 7: NAN}, "loss"),  # it did no harm
        ((3, 7), {3: 2.0, 7: NAN}, "loss"),  # as an infinite mask does
        ((8,), {7: NAN}, "loss"),
    ],
)
def test_a_bad_batch_while_training(
    bad: tuple[int, ...], losses: dict[int, float], where: str
) -> None:
    found = only(Readings(loss={0: 2.3, **losses}, bad_batches=bad))
    assert found is not None
    assert (found.where, found.step) == (where, 7)
    assert found.causes[0] == ("data" if where == "data" else "learning rate")
    assert ("the batch of step 7 itself holds NaN" in found.message) is (where == "data")


def test_what_lies_between_two_layers() -> None:
    before = layer("a", input_rms=1.0)
    found = only(Readings((StepReading(0, (before, layer("b", NAN, input_rms=NAN))),)))
    assert found is not None
    assert (found.where, found.causes[0]) == ("b", "architecture")
    assert "though the output of a was not" in found.message
    own = only(Readings((StepReading(0, (before, layer("b", math.inf, input_rms=1e30))),)))
    assert own is not None
    assert (own.where, own.causes[0]) == ("b", "init scale")


def test_the_function_after_a_layer() -> None:
    after = ActivationReading("exp", math.inf, NAN, math.inf, math.inf, 0.0)
    found = only(Readings((StepReading(0, (layer("a", after=after), layer("b", NAN))),)))
    assert found is not None
    assert found.where == "a"
    assert "exp after a" in found.message


def test_a_lost_loss_says_what_was_largest_before() -> None:
    steps = (StepReading(5, (layer("a"), layer("b", 1e8))),)
    found = only(Readings(steps, {0: 1.0, 6: NAN}))
    assert found is not None
    assert "at step 5 the largest output was 3e+08, of b" in found.message


def test_skips_count_in_a_row() -> None:
    apart = {step: NAN if step % 2 else 1.0 for step in range(20)}
    assert only(Readings(loss=apart, skips_allowed=True)) is None
    row = {step: NAN if step >= 15 else 1.0 for step in range(20)}
    found = only(Readings(loss=row, skips_allowed=True))
    assert found is not None
    assert found.step == 15


def test_it_explains_all_that_follows() -> None:
    weight = WeightReading("w", 4, NAN, NAN, finite=False)
    steps = (StepReading(0, (layer("a", NAN),), (weight,)),)
    (found,) = examine(Readings(steps, {0: NAN, **dict.fromkeys(range(1, 5), 9.0)}))
    assert found.where == "w"
    assert found.causes[0] == "init scale"


# a real model


@pytest.mark.parametrize("place", ["x", "weight", "log"])
def test_planted_in_a_model(place: str) -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)])
    x, y = torch.randn(32, 8), torch.arange(32) % 4

    def loss() -> torch.Tensor:
        hidden = net[0](x).relu()
        hidden = hidden.log() * 0 if place == "log" else hidden
        return F.cross_entropy(net[2](net[1](hidden).relu()), y)

    if place == "x":
        x[3, 2] = NAN
    if place == "weight":
        net[1].weight.data[2, 2] = math.inf
    report = audit(net, loss)
    worst = report.worst
    assert worst is not None
    assert (worst.detector, worst.severity) == ("non_finite", "error")
    expected = {"x": {"data", "0"}, "weight": {"1.weight"}, "log": {"1"}}
    assert worst.where in expected[place]
    assert len(report.errors) == 1
