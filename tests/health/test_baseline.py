"""Deep beside shallow: the limits, what is overheard, and that nothing of the user's is touched."""

from __future__ import annotations

import math
from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.digits import Digits, DigitsMLP
from lightning_init import initialize_
from lightning_init.architecture.readings import BaselineReading, Readings
from lightning_init.health.findings import Finding
from lightning_init.health.overheard import Overhear
from lightning_init.health.registry import examine
from lightning_init.health.report import Report
from lightning_init.health.shallow import NoBaselineError, Twin, shallow_baseline


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def judged(deep: float, shallow: float, steps: int = 50, start: float = 2.0) -> Finding | None:
    """Both start at `start` and are at their last value from the second step on."""
    twin = BaselineReading(
        {0: start} | dict.fromkeys(range(1, steps), deep),
        {0: start} | dict.fromkeys(range(1, steps), shallow),
        64,
        0.1,
    )
    found = examine(Readings(baseline=twin), ["worse_than_shallow"])
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize(
    ("deep", "shallow", "steps", "severity"),
    [
        (1.51, 1.0, 50, "warning"),  # 49 % of the shallow one's progress
        (1.49, 1.0, 50, None),
        (1.91, 1.0, 50, "error"),  # 9 %
        (1.89, 1.0, 50, "warning"),
        (1.91, 1.0, 49, "warning"),  # too early to be sure
        (2.0, 1.0, 19, None),
        (2.0, 1.0, 20, "warning"),
        (2.0, 1.81, 50, None),  # the shallow one has not learned either
        (2.0, 1.79, 50, "error"),
        (5.0, 1.0, 50, "error"),
        (math.nan, 1.0, 50, "error"),
        (0.5, 1.0, 50, None),
    ],
)
def test_limits(deep: float, shallow: float, steps: int, severity: str | None) -> None:
    found = judged(deep, shallow, steps)
    assert (found.severity if found else None) == severity
    if found:
        assert found.message.startswith(f"after {steps} steps")
        assert "64 units" in found.message


def test_a_loss_that_rose_is_the_learning_rate_first() -> None:
    rose, stayed = judged(5.0, 1.0), judged(2.0, 1.0)
    assert rose is not None
    assert stayed is not None
    assert rose.causes[0] == "learning rate"
    assert stayed.causes[:2] == ("init scale", "depth")
    assert "larger init" in stayed.remedy
    assert "better parametrization" in stayed.remedy


def test_nothing_to_say_without_a_baseline() -> None:
    assert examine(Readings(), ["worse_than_shallow"]) == ()


def heard(step: Callable[[], Tensor]) -> Overhear:
    with Overhear() as found:
        step()
    return found


def test_overhears_inputs_and_loss_as_they_are() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    found = heard(lambda: F.cross_entropy(model(x / 2), y, label_smoothing=0.1))
    assert torch.equal(found.inputs[0], x / 2)
    assert len(found.inputs) == 1, "what the second layer takes is the model's own"
    (call,) = found.losses
    with torch.no_grad():
        loss = F.cross_entropy(model(x / 2), y, label_smoothing=0.1)
    assert call.value == pytest.approx(float(loss))
    other = torch.randn(8, 3)
    assert torch.equal(call.of(other), F.cross_entropy(other, y, label_smoothing=0.1))


@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        (lambda out, y: F.nll_loss(out.log_softmax(1), y), F.cross_entropy),
        (
            lambda out, y: F.binary_cross_entropy(out.sigmoid(), F.one_hot(y, 3).float()),
            lambda out, y: F.binary_cross_entropy_with_logits(out, F.one_hot(y, 3).float()),
        ),
    ],
    ids=["nll", "bce"],
)
def test_a_loss_of_probabilities_gets_them(loss: Callable, plain: Callable) -> None:
    model, y = nn.Linear(4, 3), torch.tensor([0, 2])
    x = torch.randn(2, 4)
    (call,) = heard(lambda: loss(model(x), y)).losses
    other = torch.randn(2, 3)
    torch.testing.assert_close(call.of(other), plain(other, y))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(6, 8)
        self.table, self.out = nn.Embedding(11, 8), nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.places(torch.arange(ids.shape[1]))  # not of the batch
        return self.out(self.table(ids) + places)


IDS = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def shifted(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(IDS)[:, :-1].reshape(-1, 11), IDS[:, 1:].reshape(-1))


TASKS: dict[str, tuple[nn.Module, Callable[[nn.Module], Tensor]]] = {
    "per position": (Tokens(), lambda m: F.cross_entropy(m(IDS).flatten(0, 1), IDS.flatten())),
    "classes second": (Tokens(), lambda m: F.cross_entropy(m(IDS).transpose(1, 2), IDS)),
    "shifted": (Tokens(), shifted),
    "one per sequence": (Tokens(), lambda m: F.cross_entropy(m(IDS).mean(1), IDS[:, 0])),
    "image": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)),
        lambda m: F.mse_loss(m(IMAGES), torch.ones(4, 2)),
    ),
    "one number": (
        nn.Sequential(nn.Flatten(), nn.Linear(192, 1), nn.Flatten(0)),
        lambda m: F.binary_cross_entropy_with_logits(m(IMAGES), torch.ones(4)),
    ),
    "image to image": (
        nn.Conv2d(3, 3, 3, padding=1),
        lambda m: F.l1_loss(m(IMAGES), torch.zeros(4, 3, 8, 8)),
    ),
    "series": (
        nn.LSTM(8, 5, batch_first=True),
        lambda m: F.cross_entropy(m(IMAGES[:, 0])[0][:, -1], IDS[:, 0] % 5),
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_learns_whatever_the_task(name: str) -> None:
    model, step = TASKS[name]
    twin = Twin(model, lambda p: torch.optim.Adam(p, lr=0.01))
    for index in range(60):
        twin.learn(index, heard(lambda: step(model)))
    reading = twin.reading()
    assert reading.deep[0] == pytest.approx(float(step(model).detach()))
    assert len(set(reading.deep.values())) == 1, "the model itself has not been trained"
    assert reading.shallow[59] < 0.8 * reading.shallow[0]


def test_a_bigram_is_learned_per_position() -> None:
    """The next token is a function of this one: a shallow model of the position can know it."""
    ids = torch.arange(6).repeat(8, 1).add(torch.arange(8)[:, None]).remainder(11)
    model = Tokens()
    twin = Twin(model, lambda p: torch.optim.Adam(p, lr=0.01))

    def step() -> Tensor:
        return F.cross_entropy(model(ids)[:, :-1].reshape(-1, 11), ids[:, 1:].reshape(-1))

    for index in range(200):
        twin.learn(index, heard(step))
    assert twin.reading().shallow[199] < 0.05


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (lambda m: (m(IMAGES[:, 0, 0]) - 1).square().mean(), "loss functions"),
        (lambda m: F.mse_loss(m(IMAGES[:, 0, 0]).sum(0), torch.ones(2)), "as many samples"),
    ],
)
def test_says_why_there_is_none(step: Callable[[nn.Module], Tensor], why: str) -> None:
    model = nn.Linear(8, 2)
    with pytest.raises(NoBaselineError, match=why):
        Twin(model, sgd).learn(0, heard(lambda: step(model)))


def test_the_model_is_afterwards_as_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    known, versions = dict(model.named_parameters()), [p._version for p in model.parameters()]
    x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    report = shallow_baseline(
        model, lambda batch: F.cross_entropy(model(batch[0]), batch[1]), [(x, y)] * 5, sgd
    )
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(parameter.grad is None for parameter in model.parameters())
    # The very tensors, on which no optimizer has stepped: else they would count as trained.
    assert all(parameter is known[name] for name, parameter in model.named_parameters())
    assert [p._version for p in model.parameters()] == versions
    twin = report.readings.baseline
    assert twin is not None
    # The audited loss is that of the first step.
    assert twin.deep[0] == pytest.approx(report.readings.loss[0])
    assert "baseline, 5 steps: loss" in str(report)
    with pytest.raises(ValueError, match="no batch"):
        shallow_baseline(model, lambda batch: F.cross_entropy(model(batch[0]), batch[1]), [], sgd)


def test_a_recurrent_net_trains_beside_it_too() -> None:
    """Its weights are held in a list besides, which must learn as well."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    model, x, y = Last(), torch.randn(32, 5, 8), torch.randint(0, 3, (32,))
    with torch.no_grad():
        model.out.weight.zero_()  # what it learns must come through the LSTM, too
    before = model(x).detach()
    report = shallow_baseline(
        model,
        lambda batch: F.cross_entropy(model(batch[0]), batch[1]),
        [(x, y)] * 40,
        lambda parameters: torch.optim.Adam(parameters, lr=0.03),
    )
    twin = report.readings.baseline
    assert twin is not None
    assert twin.deep[39] < 0.2
    assert twin.shallow[39] < 0.2
    assert torch.equal(model(x), before)


def test_the_deep_losses_are_those_of_plain_training() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [(torch.randn(16, 4), torch.randint(0, 3, (16,))) for _ in range(6)]

    def step(batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    report = shallow_baseline(model, step, batches, sgd)
    optimizer, losses = sgd(model.parameters()), []
    for batch in batches:
        loss = step(batch)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert report.readings.baseline is not None
    assert list(report.readings.baseline.deep.values()) == losses


# The fourth row of the classic red-flag table. Deep underfits where a single layer overfits: larger
# init or better parametrization.


def digits() -> list[tuple[Tensor, Tensor]]:
    data = Digits()
    pl.seed_everything(0, verbose=False)
    data.setup("fit")
    every = [batch for _ in range(4) for batch in data.train_dataloader()]
    return [(x, y) for x, y in every][:80]


def beside(model: DigitsMLP) -> tuple[Finding | None, Report]:
    """What is said of the model by the rule, be it a root or a consequence."""
    report = shallow_baseline(
        model,
        lambda batch: F.cross_entropy(model.net(batch[0]), batch[1]),
        digits(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    )
    every = [one for root in report.findings for one in (root, *root.consequences)]
    return next((one for one in every if one.detector == "worse_than_shallow"), None), report


@pytest.mark.slow
def test_red_flag_deep_underfits_where_a_single_layer_overfits() -> None:
    pl.seed_everything(0, verbose=False)
    model = DigitsMLP(30)
    found, report = beside(model)
    assert found is not None
    assert found.severity == "error"
    assert "one hidden layer of 64 units" in found.message
    assert found.causes[:2] == ("init scale", "depth")
    assert "gradients shrink to" in found.likely_cause
    assert 'larger init that keeps the variance, InitCallback("orthogonal")' in found.remedy
    assert "better parametrization: residual connections" in found.remedy
    assert report.worst is not None
    assert report.worst.severity == "error"
    initialize_(model, "orthogonal", seed=0)  # what the fix says
    assert beside(model)[0] is None
