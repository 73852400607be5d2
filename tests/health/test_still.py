"""What does not learn, end to end: fresh weights that are frozen, and loaded ones that may be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init.health.audit import audit


def net(trained: bool) -> nn.Sequential:
    """Four layers, a fresh head on a body that is frozen: fresh, or trained for 200 steps."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(48, 10))
    if trained:
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        x, y = torch.randn(256, 64), torch.randint(0, 10, (256,))
        for _ in range(200):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        state = model.state_dict()
        model = nn.Sequential(*[type(m)(*_sizes(m)) for m in model])
        model.load_state_dict(state)
        model[-1] = nn.Linear(48, 10)
    model[:-1].requires_grad_(False)
    return model


def _sizes(module: nn.Module) -> tuple[int, ...]:
    return (module.in_features, module.out_features) if isinstance(module, nn.Linear) else ()


@pytest.mark.parametrize(("trained", "errors"), [(False, ["frozen_layers"]), (True, [])])
def test_a_frozen_body(trained: bool, errors: list[str]) -> None:
    model = net(trained)
    x, y = torch.randn(64, 64), torch.randint(0, 10, (64,))
    report = audit(model, lambda: F.cross_entropy(model(x), y))
    assert [one.detector for one in report.findings if one.severity == "error"] == errors
    assert report.readings.trained is trained
    assert {one.name for one in report.readings.steps[0].weights if one.trained} == (
        {name for name, p in model.named_parameters() if not p.requires_grad} if trained else set()
    )
