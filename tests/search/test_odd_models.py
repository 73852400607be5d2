"""Objectives that run the user's validation, on models and loaders that are not the usual."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

from lightning_init import InitSpec, Outcome, SearchResult, search_init
from lightning_init.search.fit import short_fit
from lightning_init.search.mistakes import ConfigError
from lightning_init.search.objectives import Objective, parse_objectives
from lightning_init.search.records import OtherStudyError
from lightning_init.search.space import Space, around
from lightning_init.search.trial import Report, Trial
from tests.search.fakes import LR, AtCall, Recorded, interrupt, noise
from tests.search.models import Data, Net

STEPS = 10
MADE: list[pl.LightningModule] = []


class Called(Net):
    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def loss(self, batch: list[Tensor]) -> Tensor:
        return (self(batch[0]) - batch[1]).square().mean()


class Recurrent(Called):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 1)
        self.lstm = nn.LSTM(1, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.lstm(x.unsqueeze(-1))[0][:, -1])


class SeveralOutputs(Called):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        logits = self.other(x)
        return {"y": self.net(x), "class": (logits, logits.argmax(1))}

    def loss(self, batch: list[Tensor]) -> Tensor:
        out = self(batch[0])
        return (out["y"] - batch[1]).square().mean() + out["class"][0].square().mean()


class AtEpochEnd(Called):
    """Logs once, when all batches have been seen."""

    def on_validation_epoch_start(self) -> None:
        self.seen: list[Tensor] = []

    def validation_step(self, batch: list[Tensor]) -> None:
        self.seen.append(self.loss(batch).detach())

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", torch.stack(self.seen).mean())


class Tied(Called):
    def __init__(self) -> None:
        super().__init__()
        one, two = nn.Linear(4, 4), nn.Linear(4, 4)
        two.weight = one.weight
        self.net = nn.Sequential(one, nn.Tanh(), two, nn.Tanh(), nn.Linear(4, 1))


class Shifted(Data):
    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader([(x + 0.5, y) for x, y in self.rows()][:24], batch_size=8)


class Ordered(Shifted):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows(), batch_size=8)


class FromTwo(Called):
    """A training batch holds one of each loader; validation takes either kind."""

    def loss_of(self, batch: Any) -> Tensor:
        if isinstance(batch, dict):
            return super().loss(batch["a"]) + super().loss(batch["b"])
        return super().loss(batch)

    def training_step(self, batch: Any) -> Tensor:
        return self.loss_of(batch)

    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", self.loss_of(batch), batch_size=8)


class Two(Shifted):
    def train_dataloader(self) -> dict[str, DataLoader[Any]]:
        rows = self.rows()
        return {"a": DataLoader(rows, batch_size=8), "b": DataLoader(rows, batch_size=16)}


class TwoBoth(Two):
    def val_dataloader(self) -> CombinedLoader:
        loaders = {"a": super().val_dataloader(), "b": Shifted().val_dataloader()}
        return CombinedLoader(loaders, "min_size")


class TwoOfValidation(Shifted):
    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [DataLoader(self.rows(), batch_size=8), super().val_dataloader()]


class Indexed(Called):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))


class OnlyPairs(FromTwo):
    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", self.loss(batch), batch_size=8)


def fit(
    model: type[pl.LightningModule],
    *objectives: Objective,
    data: type[Data] = Shifted,
    measured: bool = False,
) -> Outcome:
    def build(seed: int, callbacks: Any, settings: Any) -> Any:
        pl.seed_everything(seed, workers=True, verbose=False)
        MADE.append(model())
        return MADE[-1], data(), pl.Trainer(callbacks=[*callbacks], accelerator="cpu", **settings)

    MADE.clear()
    trial = Trial(InitSpec("orthogonal"), {}, 3, STEPS, False, (), measured)
    return short_fit(build, trial, lambda *_: False, objectives)


def of(kind: str, value: float | None = None, name: str = "val_loss") -> Objective:
    return Objective(kind, name, "min", value)  # type: ignore[arg-type]


def by_hand(model: Any, loader: Any) -> float:
    model.eval()
    with torch.no_grad():
        losses = [float(model.loss(batch)) for batch in loader]
    return sum(losses) / len(losses)


def mean_output(outputs: list[Any]) -> Any:
    if isinstance(outputs[0], dict):
        logits = torch.stack([one["class"][0] for one in outputs]).mean(0)
        return {"y": mean_output([one["y"] for one in outputs]), "class": (logits, None)}
    return torch.stack(outputs).mean(0)


@pytest.mark.parametrize("model", [Recurrent, SeveralOutputs, AtEpochEnd, Tied])
def test_gap_pruned_and_ensemble(model, monkeypatch):
    """Oracles: the loss by hand, torch's pruning, the mean of outputs by hand."""
    found = fit(model, of("last"), of("gap"), of("pruned", 0.5), of("ensemble", 2.0), data=Ordered)
    last, gap, pruned, ensemble = found.values
    first, second = MADE
    held = list(Ordered().val_dataloader())
    assert last == pytest.approx(by_hand(first, held), rel=1e-5)
    training = list(Ordered().train_dataloader())[:3]
    assert gap == pytest.approx(last - by_hand(first, training), abs=1e-6)
    with monkeypatch.context() as patch:
        alone = first.forward
        patch.setattr(first, "forward", lambda x: mean_output([alone(x), second.eval()(x)]))
        assert ensemble == pytest.approx(by_hand(first, held), rel=1e-5)
    matrices = {id(p): p for p in first.parameters() if p.ndim == 2}  # a shared one counts once
    flat = torch.cat([p.detach().abs().flatten() for p in matrices.values()])
    masks = prune.L1Unstructured(0.5).compute_mask(flat, torch.ones_like(flat))
    with torch.no_grad():
        for p, mask in zip(
            matrices.values(), masks.split([p.numel() for p in matrices.values()]), strict=True
        ):
            p.mul_(mask.view_as(p))
    assert pruned == pytest.approx(by_hand(first, held), rel=1e-5)
    assert len({round(value, 5) for value in found.values}) == 4
    assert abs(gap) > 1e-4


def test_gap_of_several_loaders_at_once():
    """A batch of training data is what training gets: one of each loader."""
    found = fit(FromTwo, of("last"), of("gap"), data=Two)
    [model] = MADE
    model.eval()
    with torch.no_grad():
        pairs = list(CombinedLoader(Two().train_dataloader(), "max_size_cycle"))[:3]
        by = sum(float(model.loss_of(batch)) for batch, *_ in pairs) / 3
    assert found.others[0] == pytest.approx(found.metric - by, abs=1e-6)
    both = fit(FromTwo, of("last"), of("gap"), data=TwoBoth, measured=True)
    assert both.others[0] == pytest.approx(both.info["gap"])


def test_a_validation_that_cannot_take_training_batches_says_so():
    with pytest.raises(ConfigError, match=r"objective gap: validation_step fails on batches of"):
        fit(OnlyPairs, of("gap"), data=Two)
    found = fit(OnlyPairs, of("last"), data=Two, measured=True)
    assert found.metric is not None
    assert "gap" not in found.info, "only nice to know there"


def test_gap_of_one_of_several_validation_loaders():
    name = "val_loss/dataloader_idx_1"
    found = fit(Indexed, of("last", name=name), of("gap", name=name), data=TwoOfValidation)
    [model] = MADE
    assert found.metric == pytest.approx(
        by_hand(model, TwoOfValidation().val_dataloader()[1]), rel=1e-5
    )
    assert found.others[0] == pytest.approx(
        found.metric - by_hand(model, Data().val_dataloader()), rel=1e-4
    )


@pytest.mark.parametrize("text", ["gap", "pruned=0.5", "ensemble=2"])
def test_without_validation_it_is_refused_at_once(text):
    with pytest.raises(ValueError, match=r"runs your validation, but no validation metric is kn"):
        parse_objectives([text], "train_loss_end", "min")
    assert parse_objectives(["area", "steps_to=0.1"], "train_loss_end", "min")


class Ways:
    """Two goals that pull apart."""

    def __call__(self, trial: Trial, report: Report) -> Outcome:
        name = trial.spec.strategy
        one, two = {"orthogonal": (0.1, 1.0), "normal": (1.0, 0.1)}.get(name, (1.0, 1.0))
        more = 0.001 * noise(trial)
        return Outcome(one + more, ((1, 1.0), (2, one)), others=(two + more,))


SPACE = Space(tuple(InitSpec(name) for name in ("orthogonal", "normal")), {LR: around(0.01)})


def search(evaluate: Any, **arguments: Any) -> SearchResult:
    given = {"trials": 6, "steps": 5, "confirm_seeds": 3, "monitor": ["a", "b"], "lr_key": LR}
    return search_init(evaluate, SPACE, **{**given, **arguments})


def test_several_goals_with_two_workers_are_the_same():
    here, there = search(Ways()), search(Ways(), workers=2)
    assert [goal.name for goal in there.goals] == ["a", "b"]
    assert there.best.spec == here.best.spec

    def confirmed(found: SearchResult) -> dict[str, list[tuple[float, ...]]]:
        return {
            str(one.spec): [(run.value(0), run.value(1)) for run in one.runs]
            for one in (*found.candidates, found.baseline)
            if one.config[LR] == 0.01
        }

    both = confirmed(here).keys() & confirmed(there).keys()
    assert "keep" in both
    assert all(confirmed(here)[name] == confirmed(there)[name] for name in both)


@pytest.mark.parametrize("at", [3, 9, 20])
def test_a_front_that_was_cut_off_goes_on(tmp_path, at):
    whole = search(Recorded(tmp_path, Ways()), storage=tmp_path / "whole")
    calls = Recorded(tmp_path, Ways()).calls
    (tmp_path / "calls").unlink()
    with pytest.raises(KeyboardInterrupt):
        search(Recorded(tmp_path, Ways(), trouble=AtCall(at, interrupt)), storage=tmp_path / "cut")
    found = search(Recorded(tmp_path, Ways()), storage=tmp_path / "cut")
    assert len(Recorded(tmp_path, Ways()).calls) <= len(calls) + 6
    assert len([row for row in found.trials if row["state"] == "COMPLETE"]) == 6
    assert {row["state"] for row in found.trials} <= {"COMPLETE", "FAIL"}
    assert found.best.spec == whole.best.spec


def test_goals_in_another_order_are_another_search(tmp_path):
    search(Ways(), storage=tmp_path / "study.journal")
    with pytest.raises(OtherStudyError, match="a search with other goals"):
        search(Ways(), storage=tmp_path / "study.journal", monitor=["b", "a"])
    assert [goal.name for goal in SearchResult.load(tmp_path).goals] == ["a", "b"]
    with pytest.raises(ValueError, match="named twice"):
        parse_objectives(["last", "gap", "last"], "val_loss", "min")
