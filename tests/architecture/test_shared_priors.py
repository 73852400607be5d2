"""What several calls of a loss say of the output bias that they share."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_init.architecture.analyze import analyze


def test_a_discriminator_that_hears_both_answers_has_no_prior() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(), nn.Linear(8, 1))
    real, fake = torch.randn(64, 4), torch.randn(64, 4)
    judged = torch.nn.functional.binary_cross_entropy_with_logits

    def both() -> Tensor:
        return judged(model(real), torch.ones(64, 1)) + judged(model(fake), torch.zeros(64, 1))

    assert analyze(model, both)["2.bias"].prior == ()
    once = analyze(model, lambda: judged(model(real), torch.ones(64, 1)))["2.bias"].prior
    assert once == pytest.approx((math.log(65.0),))
