"""The third row of the table of red flags: flat for long, then crash."""

from __future__ import annotations

import math

import torch

from tests.health.trained import Digits, Residual, watched


def test_flat_then_crash() -> None:
    torch.manual_seed(0)
    peak, flat = 5.0, 150
    module = Digits(
        Residual(),
        lambda net: torch.optim.SGD(net.parameters(), peak, momentum=0.9),
        schedule=lambda step: 1e-6 if step < flat else 1.0,  # a warm-up that was to end sooner
    )
    report = watched(module, flat + 30)
    losses = report.readings.loss
    assert abs(losses[flat - 1] / losses[0] - 1) < 0.2
    assert not all(math.isfinite(loss) and loss < 10 for loss in losses.values())
    (found,) = report.errors
    assert found.detector == "loss_crash"
    assert flat - 1 <= found.step < flat + 20
    assert "the loss was flat at 2.3" in found.message
    assert f"for {flat}" in found.message or "steps, then crashed" in found.message
    assert found.causes[:2] == ("learning rate", "init scale")
    assert f"it rose from {peak * 1e-6:.3g} to {peak:.3g}" in found.likely_cause
    assert "residual branches that are not scaled down" in found.likely_cause
    assert "a longer warm-up" in found.remedy
    assert 'InitCallback("fixup")' in found.remedy
    assert {one.detector for one in found.consequences} >= {"non_finite"} or math.isfinite(
        losses[max(losses)]
    )
