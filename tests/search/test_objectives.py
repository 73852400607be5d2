"""Each objective is exactly what a computation by hand gives on the same trained weights."""

import math

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

from lightning_init import InitSpec
from lightning_init.search.fit import _FREE, member_seed, short_fit
from lightning_init.search.job import ConfigError
from lightning_init.search.members import mean
from lightning_init.search.objectives import Objective
from lightning_init.search.readout import TRAIN_LOSS
from lightning_init.search.trial import Trial
from lightning_init.strategies.apply import fingerprint
from tests.search.models import Data, Net

STEPS = 40


class Split(Data):
    """Other rows to validate on, fewer than to train on."""

    def val_dataloader(self) -> DataLoader:
        rows = self.rows()
        return DataLoader([(x + 0.5, y) for x, y in rows][:24], batch_size=8)


class Called(Net):
    """Validation calls the module itself; two layers stand beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(x) + self.table(torch.zeros(len(x), dtype=torch.long)))

    def loss(self, batch: list[Tensor]) -> Tensor:
        return (self(batch[0]) - batch[1]).square().mean()


class Scattered(Net):
    """Validation gets its outputs from two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(4, 1)

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val_loss", (self.net(batch[0]) + self.other(batch[0])).square().mean())


MADE: list[pl.LightningModule] = []


def build(seed, callbacks, settings, model=Net, **more):
    pl.seed_everything(seed, workers=True, verbose=False)
    made, data = model(), Split()
    MADE.append(made)
    trainer = pl.Trainer(callbacks=[*callbacks], accelerator="cpu", **{**settings, **more})
    return made, data, trainer


def fit(*objectives, seed=3, model=Net, marks=(), measured=False, strategy="orthogonal", **more):
    MADE.clear()
    trial = Trial(InitSpec(strategy), {}, seed, STEPS, False, marks, measured)
    return short_fit(
        lambda *given: build(*given, model=model, **more), trial, lambda *_: False, objectives
    )


def plain(steps=STEPS, seed=3, model=Net, strategy="orthogonal"):
    """The same fit by hand, and its batches of training and validation data."""
    from lightning_init import InitCallback

    init = InitCallback(strategy, verbose=False)
    made, data, trainer = build(seed, [init], {**_FREE, "max_steps": steps}, model)
    trainer.fit(made, datamodule=data)
    return made, data


def val_loss(model, loader) -> float:
    model.eval()
    with torch.no_grad():
        losses = [(float(model.loss(batch)), len(batch[0])) for batch in loader]
    return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)


def of(kind: str, value=None, mode="min") -> Objective:
    return Objective(kind, "val_loss", mode, value)


def test_last_and_area():
    found = fit(of("last"), of("area"))
    by_hand = []
    for step in range(4, STEPS + 1, 4):
        model, data = plain(step)
        by_hand.append(val_loss(model, data.val_dataloader()))
    assert found.metric == pytest.approx(by_hand[-1], rel=1e-5)
    assert found.others[0] == pytest.approx(sum(by_hand) / 10, rel=1e-5)
    assert found.info["final_fingerprint"] == fingerprint(model)


def test_readings_at_marks():
    found = fit(of("last"), marks=(1, 17, STEPS))
    assert [step for step, _ in found.readings] == [1, 17, STEPS]
    model, data = plain(17)
    assert found.readings[1][1] == pytest.approx(val_loss(model, data.val_dataloader()), rel=1e-5)
    assert found.readings[2][1] == found.metric


def test_steps_to_a_target():
    course = fit(of("last"), marks=tuple(range(2, STEPS, 2))).readings
    target = course[9][1]
    first = next(step for step, value in course if value <= target)
    assert fit(of("steps_to", target)).metric == first <= 20
    never = fit(of("steps_to", 1e-9))
    assert never.metric is None
    best = min(value for _, value in course)
    assert never.reason == f"val_loss 1e-09 not reached in {STEPS} steps, best {best:.3g}"


def test_steps_to_of_what_is_to_grow():
    assert fit(of("steps_to", 1e-9, "max")).metric == 2, "the first of twenty marks"
    assert "not reached" in fit(of("steps_to", 1e9, "max")).reason


def test_gap():
    found = fit(of("gap"), of("gap", mode="max"), measured=True)
    model, data = plain()
    train = [batch for batch, _ in zip(data.train_dataloader(), range(3), strict=False)]
    val = val_loss(model, data.val_dataloader())
    # The order of the training data goes on from where it is; all of it differs from validation.
    whole = val_loss(model, data.train_dataloader())
    assert len(train) == 3
    assert found.metric == pytest.approx(val - whole, abs=0.3 * abs(val))
    assert found.metric > 0 > found.others[0] == -found.metric
    assert found.info["gap"] == found.metric


def test_gap_on_the_very_batches(monkeypatch):
    monkeypatch.setattr(
        Split, "train_dataloader", lambda self: DataLoader(self.rows(), batch_size=8)
    )
    found = fit(of("gap"))
    model, data = plain()
    train = [batch for _, batch in zip(range(3), data.train_dataloader(), strict=False)]
    by_hand = val_loss(model, data.val_dataloader()) - val_loss(model, train)
    assert found.metric == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("model", [Net, Called])
def test_pruned_is_torchs_own_global_pruning(model):
    found = fit(of("pruned", 0.6), of("last"), model=model)
    made, data = plain(model=model)
    before = fingerprint(made)
    assert found.info["final_fingerprint"] == before == fingerprint(MADE[0])
    assert found.others[0] == pytest.approx(val_loss(made, data.val_dataloader()), rel=1e-5)
    linear = [(m, "weight") for m in made.modules() if isinstance(m, nn.Linear)]
    prune.global_unstructured(linear, prune.L1Unstructured, amount=0.6)
    assert found.metric == pytest.approx(val_loss(made, data.val_dataloader()), rel=1e-5)
    assert found.metric != found.others[0]


@pytest.mark.parametrize("model", [Net, Called])
def test_an_ensemble_is_the_mean_of_its_members_outputs(model):
    found = fit(of("ensemble", 3.0), of("last"), model=model)
    first = found.info["final_fingerprint"]
    members = [plain(seed=member_seed(3, number), model=model)[0] for number in range(3)]
    data = Split()
    assert first == fingerprint(members[0])
    for member in members:
        member.eval()
    losses = []
    with torch.no_grad():
        for x, y in data.val_dataloader():
            call = [m(x) if model is Called else m.net(x) for m in members]
            losses.append(float((torch.stack(call).mean(0) - y).square().mean()))
    assert found.metric == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert (
        found.metric
        != found.others[0]
        == pytest.approx(val_loss(members[0], data.val_dataloader()), rel=1e-5)
    )


def test_an_ensemble_of_what_is_called_in_pieces_says_what_to_change():
    with pytest.raises(ConfigError, match=r"from self\.net, self\.other.*call self\(batch\)"):
        fit(of("ensemble", 2.0), model=Scattered)


def test_members_share_seeds_between_trials_and_nothing_else():
    one = {member_seed(3, number) for number in range(8)}
    assert len(one) == 8
    assert not one & {member_seed(4, number) for number in range(8)}


def test_the_mean_of_structures():
    found = mean([{"a": [torch.ones(2)], "n": 1}, {"a": [torch.zeros(2)], "n": 2}])
    assert found["n"] == 1
    assert found["a"][0].tolist() == [0.5, 0.5]


def test_several_objectives_fail_together():
    found = fit(of("last"), of("steps_to", 1e-9))
    assert (found.metric, found.others, found.values) == (None, (), ())
    assert "not reached" in found.reason


def test_the_distance_travelled():
    found = fit(of("last"), measured=True)
    start, end = plain(0)[0], plain()[0]
    # Trainer(max_steps=0) initializes and stops.
    now, then = (nn.utils.parameters_to_vector(m.parameters()).detach() for m in (end, start))
    assert found.info["init_fingerprint"] == fingerprint(start)
    assert found.info["distance"] == pytest.approx(float((now - then).norm() / then.norm()))
    assert "distance" not in fit(of("last")).info


def test_without_validation_the_training_loss_serves(monkeypatch):
    monkeypatch.delattr(Net, "validation_step")
    monkeypatch.delattr(Split, "val_dataloader")
    monkeypatch.delattr(Data, "val_dataloader")
    found = fit(Objective("area", TRAIN_LOSS), Objective("last", TRAIN_LOSS))
    curve = [value for _, value in found.curve]
    ends = []
    for step in range(4, STEPS + 1, 4):
        last = curve[:step][-max(1, step // 10) :]
        ends.append(sum(last) / len(last))
    assert found.metric == pytest.approx(sum(ends) / 10)
    assert found.others[0] == pytest.approx(ends[-1])
    assert math.isfinite(found.metric)
