"""InitTuner in use: what it shows, data that is prepared once, keys in lists, what it leaves alone."""

import sys
import warnings
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_init import Axis, InitTuner, Space
from lightning_init.search.job import ConfigError
from lightning_init.search.module_evaluate import ModuleEvaluate
from lightning_init.search.prepared import Prepared
from lightning_init.search.space import around
from lightning_init.search.trial import Trial
from lightning_init.search.tuned import in_python
from lightning_init.strategies.apply import fingerprint
from lightning_init.strategies.spec import InitSpec
from tests.search.test_tuner import Net, Rows, evaluated, find, rows, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning",
    "ignore:.*IntegerField:DeprecationWarning",
)


def test_it_is_shown_how_it_goes_where_the_trainer_shows_it(capsys):
    find(Net(), Rows(), trainer(enable_progress_bar=True))
    out = capsys.readouterr().out
    assert "screening 3/3 in 0:0" in out
    assert "confirming " in out
    find(Net(), Rows())
    assert capsys.readouterr().out == ""
    told: list[object] = []
    find(Net(), Rows(), trainer(enable_progress_bar=True), progress=told.append)
    assert told
    assert capsys.readouterr().out == ""


def test_what_it_says_names_arguments(tmp_path):
    found = find(Net(), Rows())
    flat = [(step, 2.3) for step in range(20)]
    found = replace(found, trials=tuple({**trial, "curve": flat} for trial in found.trials))
    said = [*found.lines(), *found.notes]
    assert any("pass longer steps" in line for line in said)
    assert not any("--" in line for line in said)
    found.save(tmp_path)
    assert "pass longer --steps" not in (tmp_path / "report.html").read_text()
    said_with = f"the same command with {found.seeds_option} 9"
    assert in_python(said_with) == "the same call with confirm_seeds=9"


class Slow(pl.LightningDataModule):
    """Writes down who prepares and sets up, in a place that no trial puts back."""

    log: list[str] = []  # noqa: RUF012
    train_dataloader = Rows.val_dataloader
    val_dataloader = Rows.val_dataloader

    def prepare_data(self) -> None:
        self.log.append("prepare")

    def setup(self, stage: str) -> None:
        self.log.append("setup")
        self.rows = rows()
        self.large = torch.ones(2**18 + 1)


def test_data_is_prepared_once(monkeypatch):
    monkeypatch.setattr(Slow, "log", [])
    find(Net(), Slow(), trials=6, confirm_seeds=2)
    assert Slow.log.count("prepare") == 1, "in the look"
    assert Slow.log.count("setup") == 4, "in the look, and once for each of three seeds"


def test_a_trial_with_prepared_data_is_the_same_bit_for_bit(monkeypatch):
    """Oracle: the evaluation that prepares the data itself."""
    monkeypatch.setattr(Slow, "log", [])
    trial = Trial(InitSpec("normal"), {"lr": 0.05}, 7, 6)
    used, alone = evaluated(Net(), trainer()), evaluated(Net(), trainer())
    used.data, alone.data = Slow(), Slow()
    outcomes = [used(trial, lambda *_: False) for _ in range(3)]
    assert Slow.log == ["prepare", "setup"]
    monkeypatch.setattr(Prepared, "take", lambda *_: None)
    assert alone(trial, lambda *_: False).info == outcomes[0].info == outcomes[2].info
    assert Slow.log == ["prepare", "setup"] * 2


def test_without_data_it_is_said_in_terms_of_python():
    for arguments in ({}, {"datamodule": pl.LightningDataModule()}):
        with pytest.raises(ConfigError, match=r"pass a datamodule or train_dataloaders=") as caught:
            InitTuner(trainer()).find(Net(), **arguments)
        assert "configuration" not in str(caught.value)
        assert "class_path" not in str(caught.value)


def test_what_is_not_searched_is_said_or_refused():
    space = Space(("normal",), {"width": Axis(choices=(4, 6))})
    with pytest.raises(ConfigError, match="lr_name: 'lr' is no axis of the space: add it"):
        find(Net(), Rows(), strategies=None, space=space, lr_name="lr")
    space = Space(("normal",))
    found = find(Net(), Rows(), strategies=None, space=space)
    assert any(note.startswith("lr is no axis of the space: it is fixed") for note in found.notes)
    assert found.rate_key == ""


class Rates(Net):
    def __init__(self, rates: list[float]) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.limits = {"clip": [1.0, 2.0]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = zip((self.body, self.head), self.hparams["rates"], strict=True)
        return torch.optim.SGD([{"params": part.parameters(), "lr": rate} for part, rate in groups])


def test_keys_in_lists_of_the_model(monkeypatch):
    """Oracle: the model that is built with the value."""
    model = Rates([0.1, 0.2])
    spec = InitSpec("normal")
    one = evaluated(model, trainer())(Trial(spec, {"rates.1": 0.05}, 3, 4), lambda *_: False)
    two = evaluated(Rates([0.1, 0.05]), trainer())(Trial(spec, {}, 3, 4), lambda *_: False)
    assert one.info["final_fingerprint"] == two.info["final_fingerprint"]
    space = Space(("normal",), {"rates.1": around(0.2), "limits.clip.0": Axis(0.5, 2.0)})
    found = find(model, Rows(), strategies=None, space=space, lr_name="rates.1", trials=4)
    assert found.rate_key == "rates.1"
    assert model.hparams["rates"] == [0.1, 0.2]
    winner = replace(found.candidates[0], config={"rates.1": 0.3, "limits.clip.0": 0.5})
    replace(found, best=winner).apply(seed=1)
    assert model.hparams["rates"] == [0.1, 0.3]
    assert model.limits == {"clip": [0.5, 2.0]}
    for key, says in (
        ("rates.2", "unknown attribute of the model 'rates.2': rates is a list, of which 0, 1 is"),
        ("limits.clap.0", "did you mean 'limits.clip.0'"),
        ("rate.0", "unknown attribute of the model 'rate.0': did you mean 'rates'"),
    ):
        space = Space(("normal",), {key: around(0.2)})
        with pytest.raises(ConfigError, match=says):
            find(model, Rows(), strategies=None, space=space)


def test_filters_of_warnings_are_left_as_found(monkeypatch, tmp_path):
    """Plotly adds some when it is first imported."""
    found = find(Net(), Rows())
    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    before = list(warnings.filters)
    winner = next(one for one in found.candidates if one.spec.strategy != "keep")
    won = replace(found, best=winner)

    def save() -> None:
        won.save(tmp_path)

    uses: list[Any] = [won.plot, won.to_callback, won.apply, save]
    for use in uses:
        use()
        assert warnings.filters == before, use


def test_loaders_in_a_mapping(monkeypatch):
    """CombinedLoader: what is drawn from several loaders at once."""

    class Twice(Net):
        def training_step(self, batch: dict[str, list[torch.Tensor]]) -> torch.Tensor:
            return super().training_step(batch["a"]) + super().training_step(batch["b"])

    def loaders() -> dict[str, DataLoader[Any]]:
        return {
            name: DataLoader(rows(), batch_size=size, shuffle=True)
            for name, size in (("a", 8), ("b", 4))
        }

    val = DataLoader(rows(), batch_size=8)
    own = trainer(enable_checkpointing=False)
    found = find(Twice(), None, own, train_dataloaders=loaders(), val_dataloaders=val)
    run = found.baseline.runs[0]
    pl.seed_everything(run.seed, workers=True, verbose=False)
    model = Twice()
    hand = trainer(max_steps=4, enable_checkpointing=False, num_sanity_val_steps=0)
    hand.fit(model, loaders(), val)
    assert run.info["final_fingerprint"] == fingerprint(model)


def test_an_evaluation_travels_without_what_was_prepared():
    evaluate = evaluated(Net(), trainer())
    evaluate(Trial(InitSpec("keep"), {}, 1, 2), lambda *_: False)
    state = evaluate.__getstate__()
    assert "_prepared" not in state
    again = ModuleEvaluate.__new__(ModuleEvaluate)
    again.__setstate__(state)
    assert again(Trial(InitSpec("keep"), {}, 1, 2), lambda *_: False).metric is not None
