"""Faults planted into real models: found before the first step, and the right cause is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.models import MODELS, Classifier, residual_mlp
from lightning_init import audit, initialize_
from lightning_init.health.report import Report


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim > 1]


@torch.no_grad()
def scaled(model: nn.Module, factor: float) -> None:
    for parameter in _matrices(model):
        parameter.mul_(factor)


@torch.no_grad()
def constant(model: nn.Module, value: float = 0.05) -> None:
    for parameter in _matrices(model):
        parameter.fill_(value)


@torch.no_grad()
def drawn(model: nn.Module) -> None:
    for parameter in _matrices(model):
        parameter.normal_()


@torch.no_grad()
def shut(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "bias" in name and parameter.ndim == 1:
            parameter.fill_(-10)


def nothing(model: nn.Module) -> None:
    pass


def pixels(x: Tensor) -> Tensor:
    return x * 100 + 50


def same(x: Tensor) -> Tensor:
    return x


FAULTS: dict[str, tuple[Callable[[nn.Module], None], Callable[[Tensor], Tensor], str]] = {
    "x 10": (lambda model: scaled(model, 10.0), same, "init scale"),
    "x 100": (lambda model: scaled(model, 100.0), same, "init scale"),
    "/ 10": (lambda model: scaled(model, 0.1), same, "init scale"),
    "N(0, 1)": (drawn, same, "init scale"),
    "constant": (constant, same, "symmetry"),
    "zero": (lambda model: constant(model, 0.0), same, "symmetry"),
    "bias -10": (shut, same, "bias"),
    "inputs": (nothing, pixels, "data scale"),
}
PLAIN = ("relu mlp, 3 layers", "plain cnn", "lstm on rows", "resnet, no norm", "encoder, pre-norm")
# What was written into its norm layers is found there.
ELSEWHERE = {("encoder, pre-norm", "bias -10"): "normalization"}


def report_of(name: str, fault: str) -> Report:
    plant, change, _ = FAULTS[fault]
    build, data = MODELS[name]
    torch.manual_seed(0)
    model = build()
    plant(model)
    x, y = data()
    return audit(model, lambda: model(change(x[:128]), y[:128]))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", PLAIN)
def test_planted_faults_are_found_and_named(name: str, fault: str) -> None:
    report = report_of(name, fault)
    assert report.errors
    if report.errors[0].detector != "non_finite":
        cause = ELSEWHERE.get((name, fault), FAULTS[fault][2])
        assert cause in report.errors[0].causes[:2]


@pytest.mark.parametrize("name", PLAIN)
def test_the_same_models_as_they_are(name: str) -> None:
    torch.manual_seed(0)
    build, data = MODELS[name]
    model, (x, y) = build(), data()
    assert audit(model, lambda: model(x[:128], y[:128])).errors == ()


@pytest.mark.parametrize(("blocks", "detector"), [(12, "initial_loss"), (24, "forward_growth")])
def test_branches_that_add_up(blocks: int, detector: str) -> None:
    torch.manual_seed(0)
    model = Classifier(residual_mlp(blocks), (64,))
    x, y = MODELS["residual mlp, no norm"][1]()
    initialize_(model, "kaiming_normal", seed=0)

    def loss() -> Tensor:
        return model(x[:128], y[:128])

    (finding,) = audit(model, loss).errors
    assert (finding.detector, finding.causes[0]) == (detector, "architecture")
    assert f"{blocks} blocks add up without residual scaling" in finding.likely_cause
    assert 'InitCallback("gpt2")' in finding.remedy
    initialize_(model, "fixup", seed=0, forward=loss)  # what the fix says
    assert audit(model, loss).errors == ()
