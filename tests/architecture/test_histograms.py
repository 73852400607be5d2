"""Histograms against numpy's, and what the nonlinearity makes of the same values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_init import audit
from lightning_init.architecture.histograms import histogram


def test_shares_are_those_of_numpy() -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = histogram(values)
    assert found is not None
    bins = len(found.shares)
    kept = np.clip(values.numpy(), found.low, found.high)
    counts, _ = np.histogram(kept, bins=bins, range=(found.low, found.high))
    assert found.shares == pytest.approx((counts / 5000).tolist(), abs=1e-12)
    assert sum(found.shares) == pytest.approx(1.0)
    # The ends leave out the outermost 0.2 % of each side.
    assert found.low == pytest.approx(np.quantile(values.numpy(), 0.002), abs=0.02)
    assert found.high == pytest.approx(np.quantile(values.numpy(), 0.998), abs=0.02)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-20])
def test_equal_values_have_a_place_in_the_middle(value: float) -> None:
    found = histogram(torch.full((10,), value))
    assert found is not None
    assert found.low < value < found.high
    assert sum(found.shares) == pytest.approx(1.0)


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [math.inf]])
def test_what_is_not_a_number_has_none(values: list[float]) -> None:
    assert histogram(torch.tensor(values)) is None


def test_an_audit_has_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.randn(64, 8)
    report = audit(model, lambda: model(x).square().mean())
    first = report.layers[0].histogram
    assert first is not None
    out = model[0](x).detach()
    assert out.min() <= first.low < first.high <= out.max()
    middle = (first.low + first.high) / 2
    assert sum(first.shares[: len(first.shares) // 2]) == pytest.approx(
        float((out < middle).float().mean()), abs=0.03
    )
