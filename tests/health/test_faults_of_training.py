"""Faults of training, planted in real ones: flagged in time, with the right cause first."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_init import audit, initialize_
from lightning_init.health.report import Report
from tests.health.trained import Digits, Encoder, X, Y, cnn, mlp, watched

SGD = {"mlp": 0.1, "cnn": 0.1, "encoder": 0.1}
ADAM = 1e-3
NETS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn, "encoder": Encoder}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def sgd(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda net: torch.optim.SGD(net.parameters(), lr)


def adam(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda net: torch.optim.AdamW(net.parameters(), lr)


# the learning rate


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_learning_rate_a_hundred_times_too_high(name: str, kind: str) -> None:
    make = sgd(SGD[name] * 100) if kind == "sgd" else adam(ADAM * 100)
    report = watched(Digits(NETS[name](), make), 21)
    assert report.errors, str(report)
    worst = report.errors[0]
    assert "learning rate" in worst.causes[:2]
    assert worst.step <= 20
    assert len(report.errors) == 1
    assert "learning rate" in worst.remedy


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_fitting_learning_rate(name: str, kind: str) -> None:
    make = sgd(SGD[name]) if kind == "sgd" else adam(ADAM)
    report = watched(Digits(NETS[name](), make), 60)
    assert report.errors == (), str(report)
    assert not [f for f in report.findings if f.detector in ("update_ratio", "loss_blow_up")]


def test_a_learning_rate_of_nothing() -> None:
    report = watched(Digits(mlp(), adam(1e-9)), 60)
    found = {finding.detector: finding for finding in report.findings}
    assert {"update_ratio"} <= set(found)
    assert found["update_ratio"].causes[0] == "learning rate"
    assert "too low" in found["update_ratio"].likely_cause


# the end of the model and the loss


def ended(end: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> Report:
    net = nn.Sequential(mlp(), end)
    initialize_(net, "kaiming_normal", seed=0)
    return audit(net, lambda: loss(net(X[:128]), Y[:128]))


def one_hot(kind: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda out, y: kind(out, F.one_hot(y, 10).float())


@pytest.mark.parametrize(
    ("end", "loss", "severity", "cause"),
    [
        (nn.Identity(), F.cross_entropy, None, ""),
        (nn.Softmax(1), F.cross_entropy, "error", "loss function"),
        (nn.Sigmoid(), F.cross_entropy, "error", "output layer"),
        (nn.ReLU(), F.cross_entropy, "error", "output layer"),
        (nn.LogSoftmax(1), F.cross_entropy, "info", "loss function"),
        (nn.LogSoftmax(1), F.nll_loss, None, ""),
        (nn.Identity(), F.nll_loss, "error", "loss function"),
        (nn.Softmax(1), F.nll_loss, "error", "loss function"),
        (nn.Sigmoid(), one_hot(F.binary_cross_entropy), None, ""),
        (nn.Identity(), one_hot(F.binary_cross_entropy_with_logits), None, ""),
        (nn.Sigmoid(), one_hot(F.binary_cross_entropy_with_logits), "error", "loss function"),
        (nn.Tanh(), lambda o, y: F.mse_loss(o[:, 0], y.float()), "error", "output layer"),
        (nn.ReLU(), lambda o, y: F.mse_loss(o[:, 0], y.float()), None, ""),
        (nn.ReLU(), lambda o, y: F.mse_loss(o[:, 0], y.float() - 4.5), "error", "output layer"),
        (nn.Identity(), lambda o, y: F.mse_loss(o[:, 0], y.float() - 4.5), None, ""),
    ],
)
def test_output_and_loss(
    end: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], severity: str | None, cause: str
) -> None:
    report = ended(end, loss)
    found = [finding for finding in report.findings if finding.detector == "loss_mismatch"]
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    if found:
        assert cause == found[0].causes[0]
    if severity == "error":
        assert report.worst is found[0]


def test_labels_of_minus_one_and_one() -> None:
    net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 1))
    label = (Y[:128] > 4).float() * 2 - 1
    report = audit(net, lambda: F.binary_cross_entropy_with_logits(net(X[:128]).squeeze(1), label))
    assert report.worst is not None
    assert (report.worst.detector, report.worst.causes[0]) == ("loss_mismatch", "target")


# data


def test_nan_in_one_batch() -> None:
    x = X.clone()
    x[777, 3] = math.nan
    report = watched(Digits(mlp(), sgd(0.1)), 28, x=x)
    (worst,) = report.errors
    assert (worst.detector, worst.where, worst.causes[0]) == ("non_finite", "data", "data")
    assert worst.step == min(s for s, loss in report.readings.loss.items() if math.isnan(loss))


def test_targets_that_were_not_scaled() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    loss = lambda out, y: F.mse_loss(out.squeeze(1), y.float() * 100)  # noqa: E731
    report = watched(Digits(net, sgd(0.1), loss), 21)
    assert report.errors
    assert "target" in report.errors[0].causes[:2]


# frozen and forgotten weights


def test_layers_without_gradient() -> None:
    net = mlp()
    net[0].requires_grad_(False)
    report = watched(Digits(net, lambda n: torch.optim.SGD(n[2:].parameters(), 0.1)), 6)
    (found,) = (f for f in report.findings if f.detector == "frozen_layers")
    assert (found.where, found.severity) == ("net.0.weight", "warning")
    assert found.causes[0] == "frozen weights"


def test_layers_that_the_optimizer_does_not_hold() -> None:
    report = watched(Digits(mlp(), lambda n: torch.optim.SGD(n[2:].parameters(), 0.1)), 11)
    (found,) = (f for f in report.findings if f.detector == "frozen_layers")
    assert (found.where, found.step) == ("net.0.weight", 5)
    assert "the optimizer does not hold it" in found.likely_cause


def test_a_detach_on_the_way() -> None:
    class Detach(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    net = mlp()
    net[3] = nn.Sequential(nn.ReLU(), Detach())
    report = watched(Digits(net, adam(1e-3)), 11)
    (found,) = (f for f in report.findings if f.detector == "zero_gradients")
    assert found.causes[0] == "architecture"
    assert "detach" in found.likely_cause


# norm layers and tied weights


def test_norm_layers_that_were_drawn_like_the_rest() -> None:
    net = nn.Sequential(
        *(nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.LayerNorm(32)),
        *(nn.ReLU(), nn.Linear(32, 10)),
    )
    for value, severity in ((1.0, None), (0.0, "error"), (100.0, "error"), (-1.0, "warning")):
        nn.init.constant_(net[1].weight, value)
        report = audit(net, lambda: F.cross_entropy(net(X[:128]), Y[:128]))
        found = [f for f in report.findings if f.detector == "norm_values"]
        assert len(found) == (severity is not None), f"{value}\n{report}"
        if found:
            assert found[0].where == "1.weight"
            assert found[0].causes[0] == "normalization"
            assert severity == found[0].severity or severity == "warning"


def test_a_tied_head_that_was_drawn_again() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Embedding(50, 64), nn.LayerNorm(64)
            self.head = nn.Linear(64, 50, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.norm(self.table(ids)))

    ids = torch.randint(0, 50, (16, 32))
    net = Tied()

    def loss() -> Tensor:
        return F.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    report = audit(net, loss)
    assert report.worst is not None
    assert (report.worst.detector, report.worst.severity) == ("tied_weights", "warning")
    assert "table.weight = head.weight" in report.worst.message
    plan = initialize_(net, "gpt2", seed=0, forward=lambda: net(ids))
    assert audit(net, loss, plan=plan).errors == ()
    nn.init.xavier_normal_(net.head.weight)
    report = audit(net, loss, plan=plan)
    (finding,) = (f for f in report.findings if f.detector == "tied_weights")
    assert "an initialization of head.weight that ran after" in finding.likely_cause
