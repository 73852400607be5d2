"""The value of a loss beside that of knowing nothing, whatever form the call has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_init.architecture.readings import LossReading
from lightning_init.health.losses import LossWatch

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
PRIOR = -sum(p * math.log(p) for p in (1 / 2, 1 / 4, 1 / 6, 1 / 12))
HOLES = torch.where(torch.arange(12) % 3 == 0, -100, Y)
B = (torch.arange(48).reshape(12, 4) % 3 == 0).float()  # a third of ones
B_PRIOR = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)


def watch(call: Callable[[], Any]) -> list[LossReading]:
    with LossWatch() as seen:
        call()
    return seen.readings


def one(call: Callable[[], Any]) -> LossReading:
    (reading,) = watch(call)
    return reading


REDUCTIONS = ["mean", "sum", "none"]


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize(
    "call",
    [
        lambda how: F.cross_entropy(X, Y, reduction=how),
        lambda how: F.cross_entropy(input=X, target=Y, reduction=how),
        lambda how: nn.CrossEntropyLoss(reduction=how)(X, Y),
        lambda how: F.nll_loss(F.log_softmax(X, 1), Y, reduction=how),
        lambda how: nn.NLLLoss(reduction=how)(F.log_softmax(X, 1), Y),
    ],
)
def test_classes(call: Callable[[str], Tensor], how: str) -> None:
    reading = one(lambda: call(how))
    assert reading.value == pytest.approx(float(F.cross_entropy(X, Y)), rel=1e-5)
    assert reading.chance == pytest.approx(math.log(4))
    assert reading.prior == pytest.approx(PRIOR, rel=1e-6)
    assert reading.exact
    assert "over 4 classes" in reading.kind


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize("ignored", [-100, 7])
def test_ignored_targets_do_not_count(how: str, ignored: int) -> None:
    target = torch.where(HOLES == -100, ignored, HOLES)
    reading = one(lambda: F.cross_entropy(X, target, ignore_index=ignored, reduction=how))
    kept = HOLES != -100
    assert reading.value == pytest.approx(float(F.cross_entropy(X[kept], Y[kept])), rel=1e-5)
    shares = torch.bincount(Y[kept]) / int(kept.sum())
    assert reading.prior == pytest.approx(-float((shares * shares.log()).sum()), rel=1e-5)
    nothing = torch.full((12,), -100)
    assert watch(lambda: F.cross_entropy(X, nothing, reduction="sum")) == []


@pytest.mark.parametrize("how", REDUCTIONS)
def test_images_and_sequences(how: str) -> None:
    x, y = X.reshape(2, 6, 4).transpose(1, 2), Y.reshape(2, 6)
    reading = one(lambda: F.cross_entropy(x, y, reduction=how))
    assert reading.value == pytest.approx(float(F.cross_entropy(X, Y)), rel=1e-5)
    assert reading.chance == pytest.approx(math.log(4))
    single = one(lambda: F.cross_entropy(X[0], Y[0]))
    assert single.chance == pytest.approx(math.log(4))


@pytest.mark.parametrize("how", REDUCTIONS)
def test_probabilities_as_targets(how: str) -> None:
    target = F.one_hot(Y, 4).float() * 0.8 + 0.05
    reading = one(lambda: F.cross_entropy(X, target, reduction=how))
    assert reading.value == pytest.approx(float(F.cross_entropy(X, target)), rel=1e-5)
    assert reading.chance == reading.prior == pytest.approx(math.log(4))


def test_what_has_another_chance_is_not_read() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert watch(lambda: F.cross_entropy(X, X.softmax(1), weight)) == []
    assert watch(lambda: F.cross_entropy(X, Y, 0 * weight)) == []
    assert watch(lambda: F.cross_entropy(X[:, :1], Y * 0)) == []
    assert watch(lambda: F.poisson_nll_loss(X, B)) == []
    assert watch(lambda: F.cross_entropy(X[:0], Y[:0], reduction="sum")) == []


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize(
    "call",
    [
        lambda how: F.binary_cross_entropy_with_logits(X, B, reduction=how),
        lambda how: nn.BCEWithLogitsLoss(reduction=how)(X, B),
        lambda how: F.binary_cross_entropy(X.sigmoid(), B, reduction=how),
        lambda how: nn.BCELoss(reduction=how)(X.sigmoid(), B),
    ],
)
def test_binary(call: Callable[[str], Tensor], how: str) -> None:
    reading = one(lambda: call(how))
    expected = float(F.binary_cross_entropy_with_logits(X, B))
    assert reading.value == pytest.approx(expected, rel=1e-5)
    assert reading.chance == pytest.approx(math.log(2))
    assert reading.prior == pytest.approx(B_PRIOR, rel=1e-5)
    assert reading.exact
    assert reading.kind in ("binary cross-entropy", "binary cross-entropy with logits")
    # Those that take fractions are told from those that take logits.
    assert reading.kind.endswith("logits") is (reading.outputs == "logits")
    assert (reading.target_low, reading.target_high) == (0.0, 1.0)


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize(
    "call", [lambda x, y, how: F.mse_loss(x, y, reduction=how), lambda x, y, how: nn.MSELoss(reduction=how)(x, y)]
)  # fmt: skip
def test_squared_error(call: Callable[..., Tensor], how: str) -> None:
    target = B + 2
    reading = one(lambda: call(X, target, how))
    assert reading.value == pytest.approx(float(((X - target) ** 2).mean()), rel=1e-5)
    assert reading.chance == pytest.approx(float((target**2).mean()), rel=1e-6)
    assert reading.prior == pytest.approx(2 / 9, rel=1e-5)
    assert (reading.kind, reading.exact) == ("squared error", False)


def test_every_call_counts_and_results_are_untouched() -> None:
    x = X.clone().requires_grad_()
    with LossWatch() as seen:
        total = F.cross_entropy(x, Y) + F.mse_loss(x, B)
    assert [reading.kind for reading in seen.readings] == [
        "cross-entropy over 4 classes",
        "squared error",
    ]
    assert torch.equal(total, F.cross_entropy(x, Y) + F.mse_loss(x, B))
    total.backward()
    assert x.grad is not None
    F.cross_entropy(X, Y)
    assert len(seen.readings) == 2


# what a loss is given

WIDE = torch.randn(64, 10, generator=torch.Generator().manual_seed(1)) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        (WIDE, "logits"),
        (WIDE.softmax(1), "probabilities"),
        (WIDE.log_softmax(1), "log-probabilities"),
        (WIDE.sigmoid(), "fractions"),
        (WIDE.relu(), "nonnegative"),
        (torch.zeros(64, 10), "fractions"),
        (torch.full((64, 10), 0.1), "probabilities"),
        (WIDE.softmax(0), "fractions"),  # over the wrong dimension
    ],
)
def test_what_a_loss_is_given(outputs: Tensor, kind: str, dtype: torch.dtype) -> None:
    target = torch.arange(64) % 10
    reading = one(lambda: F.cross_entropy(outputs.to(dtype), target))
    assert (reading.outputs, reading.classes) == (kind, 10)
    assert reading.low == pytest.approx(float(outputs.min()), rel=0.02, abs=1e-3)
    assert reading.high == pytest.approx(float(outputs.max()), rel=0.02)
    spread = outputs.double().std(0, correction=0).mean()
    assert reading.spread == pytest.approx(float(spread), rel=0.02, abs=1e-3)


def test_classes_are_in_the_second_dimension() -> None:
    images = WIDE.reshape(4, 4, 4, 10).movedim(-1, 1)
    reading = one(lambda: F.cross_entropy(images.softmax(1), torch.zeros(4, 4, 4).long()))
    assert reading.outputs == "probabilities"
    reading = one(lambda: F.cross_entropy(WIDE[0].softmax(0), torch.tensor(3)))
    assert reading.outputs == "probabilities"
    assert math.isnan(reading.spread)


def test_outputs_that_stand_for_themselves() -> None:
    target = WIDE.softmax(1)
    reading = one(lambda: F.mse_loss(WIDE.softmax(1), target))
    assert reading.outputs == "fractions"
    assert (reading.target_low, reading.target_high) == (target.min(), target.max())
    broken = torch.full((8, 4), math.nan)
    assert one(lambda: F.cross_entropy(broken, Y[:8])).outputs == ""


# regression


FAR = B * 3 + 2  # a third of fives, two thirds of twos


@pytest.mark.parametrize(
    ("call", "chance", "prior"),
    [
        (F.l1_loss, 3.0, 1.0),
        (F.smooth_l1_loss, 2.5, 2.5 / 3),
        (lambda x, y: F.smooth_l1_loss(x, y, beta=2.0), 2.0, 2.0 / 3),
        (lambda x, y: F.huber_loss(x, y, delta=2.0), 2 / 3 * 2 + 1 / 3 * 8, 4 / 3),
        (nn.L1Loss(), 3.0, 1.0),
    ],
)
def test_errors_beside_the_answer_zero_and_the_median(
    call: Callable[..., Tensor], chance: float, prior: float
) -> None:
    reading = one(lambda: call(X, FAR))
    assert reading.value == pytest.approx(float(call(X, FAR)), rel=1e-5)
    assert reading.chance == pytest.approx(chance, rel=1e-5)
    assert reading.prior == pytest.approx(prior, rel=1e-5)
    assert not reading.exact


def test_ranges_and_spread_by_hand() -> None:
    reading = one(lambda: F.mse_loss(X, FAR))
    assert (reading.low, reading.high) == (float(X.min()), float(X.max()))
    assert (reading.target_low, reading.target_high) == (2.0, 5.0)
    assert reading.spread == pytest.approx(float(X.double().std(0, correction=0).mean()), rel=1e-5)
    assert reading.classes == 0
    reading = one(lambda: F.cross_entropy(X, HOLES))
    assert (reading.classes, reading.target_low, reading.target_high) == (4, 0.0, 3.0)


WEIGHT = torch.tensor([1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize(
    "call",
    [
        lambda x, **k: F.cross_entropy(x, Y, WEIGHT, **k),
        lambda x, **k: nn.CrossEntropyLoss(weight=WEIGHT, **k)(x, Y),
        lambda x, **k: F.nll_loss(x.log_softmax(1), Y, weight=WEIGHT, **k),
        lambda x, **k: F.binary_cross_entropy_with_logits(x, B, pos_weight=WEIGHT, **k),
        lambda x, **k: nn.BCEWithLogitsLoss(WEIGHT, pos_weight=2 * WEIGHT, **k)(x, B),
        lambda x, **k: F.binary_cross_entropy(x.sigmoid(), B, WEIGHT, **k),
    ],
)
def test_chance_of_a_weighted_loss_is_what_zero_logits_cost(call: Any, how: str) -> None:
    (reading,) = watch(lambda: call(torch.zeros_like(X), reduction=how))
    assert reading.value == pytest.approx(reading.chance, rel=1e-5)
    assert reading.varies is reading.kind.startswith("binary")
    # The best constant, found by gradient descent, is no worse than what is said to be best.
    constant = torch.zeros(X.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([constant], 0.1)
    for _ in range(400):
        loss = call(constant.expand(X.shape), reduction="mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) == pytest.approx(reading.prior, rel=0.02, abs=0.02)
