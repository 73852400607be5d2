"""The classic red-flag table, row by row: planted, flagged, cause and fix in words."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_init import audit, initialize_
from lightning_init.health.findings import Finding

_X, _Y = load_digits(return_X_y=True)
X = torch.tensor(_X[:128], dtype=torch.float32)
X = (X - X.mean()) / X.std()
Y = torch.tensor(_Y[:128])


def mlp(depth: int, activation: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(64, 64), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(64, 64), activation()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def flagged(model: nn.Module, x: Tensor = X) -> Finding:
    """The one error of an audit."""
    (finding,) = audit(model, lambda: F.cross_entropy(model(x), Y)).errors
    return finding


# 1. activation scale explodes in early layers: scale by 1/sqrt(fan_in)


def test_outputs_explode_in_early_layers() -> None:
    model = mlp(6, nn.ReLU)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    finding = flagged(model)
    assert (finding.detector, finding.where) == ("forward_growth", "0")
    assert "outputs explode" in finding.message
    assert finding.causes[0] == "init scale"
    assert "/sqrt(fan_in): too large" in finding.likely_cause
    assert "scale by 1/sqrt(fan_in), here std 0.12" in finding.remedy
    followed = {one.detector for one in finding.consequences}
    assert {"backward_growth", "initial_loss"} <= followed
    initialize_(model, "kaiming_normal", seed=0)  # what the fix says
    assert audit(model, lambda: F.cross_entropy(model(X), Y)).errors == ()


# 2. gradients vanish at deep layers: residuals, gamma and beta


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sigmoid(self.linear(self.norm(x)))


def test_gradients_vanish_on_the_way_back() -> None:
    finding = flagged(mlp(20, nn.Sigmoid))
    assert (finding.detector, finding.where) == ("backward_growth", "0")
    assert "gradients vanish on the way back" in finding.message
    assert "depth" in finding.causes[:2]
    assert "residual connections" in finding.remedy
    assert "norm layers with gamma (scale) 1 and beta (shift) 0" in finding.remedy
    torch.manual_seed(0)
    model = nn.Sequential(*[Residual() for _ in range(20)], nn.Linear(64, 10))  # what the fix says
    detectors = {one.detector for one in audit(model, lambda: F.cross_entropy(model(X), Y)).errors}
    assert "backward_growth" not in detectors
