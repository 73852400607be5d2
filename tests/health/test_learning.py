"""Causes by evidence: learning rate, loss, output layer, targets, ties and batches."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_init import InitSpec, audit, make_plan
from lightning_init.architecture.readings import (
    InputReading,
    LayerReading,
    LossReading,
    Readings,
    StepReading,
    WeightReading,
)
from lightning_init.health.evidence import ranked, suspicions
from lightning_init.health.findings import Cause
from lightning_init.health.registry import examine

IN, OUT = 0.98, 1.02


def suspects(readings: Readings) -> dict[str, float]:
    return {cause.name: strength for strength, cause in suspicions(readings)}


def loss(value: float = 2.3, **facts: Any) -> LossReading:
    known = {"kind": "cross-entropy over 10 classes", "chance": 2.3, "prior": 2.3, "exact": True}
    return LossReading(value=value, **(known | facts))


def moved(ratio: float, std: float = 0.2, step: int = 1) -> StepReading:
    weight = WeightReading("fc", 100, 0.0, std, role="weight", fan_in=25.0, update=ratio)
    return StepReading(step, weights=(weight,))


def test_long_steps_speak_for_the_learning_rate() -> None:
    # 0.2 of a weight's size; a length of 0.3 / sqrt(fan_in), here of large weights.
    for ratio, std, expected in (
        (0.2 * IN, 0.2, False),
        (0.2 * OUT, 0.2, True),
        (0.06 * IN, 1.0, False),
        (0.06 * OUT, 1.0, True),
    ):
        reading = moved(ratio, std * math.hypot(1, ratio))
        assert ("learning rate" in suspects(Readings((reading,)))) is expected


@pytest.mark.parametrize(("factor", "expected"), [(1.2 * IN, False), (1.2 * OUT, True)])
def test_a_loss_that_jumps_speaks_for_the_learning_rate(factor: float, expected: bool) -> None:
    first = StepReading(0, losses=(loss(),))
    for losses in ({0: 2.3, 1: 2.3 * factor}, {0: 2.0, 10: 2.3 * factor}):
        assert ("learning rate" in suspects(Readings((first,), losses))) is expected
    assert "learning rate" not in suspects(Readings((first,), {0: 2.3, 11: 2.3 * factor}))
    assert "learning rate" not in suspects(Readings((first,), {0: 2.3, 1: math.nan}))


def test_a_bad_start_makes_long_steps_too() -> None:
    def at(value: float) -> dict[str, float]:
        return suspects(Readings((StepReading(0, losses=(loss(value),)), moved(1.0))))

    assert at(2.3)["learning rate"] == pytest.approx(1 + math.log(1 / 0.2))
    assert at(2.3 * 1.3 * 2)["learning rate"] == pytest.approx(1 + math.log(5) - math.log(2))
    assert "learning rate" not in at(2.3 * 1.3 * 20)


def test_data_come_before_the_learning_rate_they_make_too_high() -> None:
    given = InputReading("fc", 50.0, 70.0, 86.0, 255.0)
    readings = Readings((StepReading(0, inputs=(given,)), moved(1.0)))
    assert [cause.name for cause in ranked(readings)] == ["data scale", "learning rate"]
    assert [c.name for c in ranked(readings, without=("data scale",))] == ["learning rate"]


def test_the_rate_is_said() -> None:
    readings = Readings((moved(1.0),), lr={0: 0.0, 1: 0.5})
    (cause,) = ranked(readings, Cause("learning rate", "usual", "usual"))
    assert "it is 0.5" in cause.remedy
    assert "moves" in cause.text


def head(gain: float, before: float = 1.0) -> StepReading:
    layers = (
        LayerReading("fc", "Linear", "", 0.0, before, before, 3.0, 0.0, input_rms=1.0),
        LayerReading(
            "head", "Linear", "", 0.0, 1.0, gain * before, 9.0, 0.0,
            input_rms=before, is_output=True,
        ),
    )  # fmt: skip
    return StepReading(0, layers)


def test_an_output_layer_that_shouts() -> None:
    assert "output layer" not in suspects(Readings((head(3 * IN),)))
    alone = suspects(Readings((head(3 * OUT),)))["output layer"]
    among = suspects(Readings((head(3 * OUT, before=4.0),)))["output layer"]
    assert alone == pytest.approx(math.log(3 * OUT) + 2)
    assert among == pytest.approx(math.log(3 * OUT))


def test_targets_far_from_one() -> None:
    def target(chance: float, kind: str = "squared error") -> dict[str, float]:
        one = loss(kind=kind, chance=chance, exact=False, target_low=-3.0, target_high=700.0)
        return suspects(Readings((StepReading(0, losses=(one,)),)))

    assert "target" not in target(25 * IN)
    assert target(1e4)["target"] == pytest.approx(math.log(100))
    assert "target" not in target(1e4, kind="huber")


def test_batches() -> None:
    assert "data" in suspects(Readings(bad_batches=(3,), loss={3: math.nan}))
    assert "data" not in suspects(Readings(bad_batches=(3, 4), loss={3: 2.0, 4: math.nan}))
    one_class = StepReading(0, losses=(loss(prior=0.0, classes=10),))
    assert "data" in suspects(Readings((one_class,), rows=32))
    assert "data" not in suspects(Readings((one_class,), rows=10))  # each sample its own class
    assert "data" not in suspects(Readings((one_class,)))


def test_a_mismatch_is_certain() -> None:
    step = StepReading(0, losses=(loss(outputs="probabilities", classes=10),))
    assert suspects(Readings((step, moved(9.0))))["loss function"] == 20
    mild = StepReading(0, losses=(loss(outputs="log-probabilities", classes=10),))
    assert suspects(Readings((mild,))) == {}


# tied weights


def table(std: float, **facts: Any) -> WeightReading:
    known = {"role": "embedding", "shape": (100, 64), "names": ("wte.weight", "head.weight")}
    return WeightReading("wte.weight", 6400, 0.0, std, **(known | facts))


@pytest.mark.parametrize(
    ("std", "first", "facts", "fires"),
    [
        (3 / 8 * OUT, 2.3 * 1.5 * OUT, {}, True),
        (3 / 8 * IN, 2.3 * 1.3 * OUT, {}, False),
        (3 / 8 * OUT, 2.3 * 1.3 * IN, {}, False),
        (1.0, 9.0, {"names": ("wte.weight",)}, False),
        (1.0, 9.0, {"trained": True}, False),
        (1.0, 9.0, {"role": "weight"}, False),
    ],
)
def test_a_table_that_is_the_output_layer_too(
    std: float, first: float, facts: dict[str, Any], fires: bool
) -> None:
    step = StepReading(0, weights=(table(std, **facts),), losses=(loss(first),))
    found = examine(Readings((step,)), ("tied_weights", "initial_loss"))
    tied = [finding for finding in found if finding.detector == "tied_weights"]
    assert bool(tied) is fires
    if fires:
        assert tied[0].causes[0] == "tied weights"
        assert "wte.weight = head.weight" in tied[0].message
        assert [one.detector for one in tied[0].consequences] == ["initial_loss"]


@pytest.mark.parametrize(
    ("ratio", "severity"),
    [(1.25 * IN, None), (1.25 * OUT, "warning"), (3 * IN, "warning"), (3 * OUT, "error")],
)
def test_a_tie_that_was_written_twice(ratio: float, severity: str | None) -> None:
    plan = {"expected_mean": 0.0, "expected_std": 0.02, "drawn": "normal, std 0.02"}
    step = StepReading(0, weights=(table(0.02 * ratio, **plan),))
    found = examine(Readings((step,)), ("tied_weights", "scheme_audit"))
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    if found:
        (finding,) = found
        assert finding.detector == "tied_weights"
        assert finding.causes == ("tied weights",)
        assert "wte.weight, head.weight" in finding.likely_cause
        assert finding.scheme == "normal, std 0.02"


def test_an_overwritten_weight_among_many_is_one_finding() -> None:
    plan = {"expected_mean": 0.0, "expected_std": 0.02}
    weights = tuple(
        WeightReading(name, 6400, 0.0, std, **plan)
        for name, std in (("a", 0.02), ("b", 0.03), ("c", 0.3), ("d", 0.3))
    )
    (found,) = examine(Readings((StepReading(0, weights=weights),)), ("scheme_audit",))
    assert (found.where, found.severity) == ("c", "error")
    assert "so has b (and 1 more tensor)" in found.message
    assert found.causes == ("init scale",)


class Bare(nn.Module):
    """Its last matrix belongs to no layer, and to nothing that is called `weight`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        made = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
        if kind == "dict":
            self.out = nn.ParameterDict({"x": made})
        elif kind == "list":
            self.out = nn.ParameterList([made])
        else:
            self.head = nn.Parameter(made)

    def forward(self, x: Tensor) -> Tensor:
        last = next(each for name, each in self.named_parameters() if "body" not in name)
        return torch.tanh(self.body(x)) @ last


@pytest.mark.parametrize("kind", ["dict", "list", "parameter"])
def test_the_remedy_for_an_output_layer_names_a_tensor_that_there_is(kind: str) -> None:
    model = Bare(kind)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)) * 3
    y = torch.arange(64) % 4
    report = audit(model, lambda: F.cross_entropy(model(x), y))
    (fix, *_) = re.findall(r"draw it smaller: overrides=({.*?}}})", str(report.verdict()))
    overrides = ast.literal_eval(fix)
    spec = InitSpec("keep", overrides=overrides)
    plan = make_plan(model, spec, forward=lambda: model(x), scope="all")
    drawn = [entry.info.name for entry in plan if entry.written]
    assert drawn == [next(n for n, _ in model.named_parameters() if "body" not in n)]
