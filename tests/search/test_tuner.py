"""InitTuner: trials are the user's own trainings, and afterwards all is as it was."""

import os
import random
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.compile import from_compiled
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_init import InitCallback, InitTuner, Space
from lightning_init.search.fresh import Fresh, copied
from lightning_init.search.job import SHORT, ConfigError
from lightning_init.search.module_evaluate import ModuleEvaluate
from lightning_init.search.objectives import Objective
from lightning_init.search.space import around
from lightning_init.search.trainer_settings import settings_of, watched
from lightning_init.search.trial import Trial
from lightning_init.strategies.apply import fingerprint
from lightning_init.strategies.spec import InitSpec

pytestmark = pytest.mark.filterwarnings(
    "ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning",
    "ignore:.*IntegerField:DeprecationWarning",
)


class Net(pl.LightningModule):
    def __init__(self, width: int = 6, lr: float = 0.1, depth: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.Tanh())]
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), *layers)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val_loss", (self(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [p for p in self.parameters() if p.requires_grad], self.hparams["lr"]
        )


class Secret(Net):
    """Says nothing of how it was built."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self._hparams = {}
        self.lr, self.scale = 0.1, scale

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr)


class Rows(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)
        self.seen: list[str] = []

    def setup(self, stage: str) -> None:
        self.seen.append(stage)
        self.rows = rows()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, batch_size=8, shuffle=True, generator=self.generator)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, batch_size=8)


def rows() -> TensorDataset:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x.sum(1, keepdim=True).sin())


def trainer(**settings: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(**{"max_steps": 12, "logger": False, **quiet, **settings})


def find(
    model: pl.LightningModule, data: object = None, own: pl.Trainer | None = None, **arguments: Any
):
    given: dict[str, Any] = {
        **{
            "trials": 3,
            "steps": 4,
            "confirm_seeds": 2,
            "confirm_steps": 4,
            "strategies": ("orthogonal",),
        },
        **arguments,
    }
    return InitTuner(own or trainer()).find(model, data, **given)


def evaluated(model: pl.LightningModule, own: pl.Trainer) -> ModuleEvaluate:
    loss = Objective("last", "val_loss")
    return ModuleEvaluate(Fresh(model), Rows(), (None, None), settings_of(own), (loss,))


def state(model: pl.LightningModule, data: Rows, own: pl.Trainer) -> dict[str, object]:
    """Everything that must be the same bit for bit."""
    return {
        "weights": fingerprint(model),
        "buffers": [b.tolist() for b in model.buffers()],
        "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "grad ids": [id(p.grad) for p in model.parameters()],
        "ids": [id(p) for p in model.parameters()],
        "versions": [p._version for p in model.parameters()],
        "asks": [p.requires_grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
        "attributes": sorted(map(str, vars(model))),
        "hparams": dict(model.hparams),
        "attached": model._trainer is None,
        "data": (sorted(vars(data)), list(data.seen), data.generator.get_state().tolist()),
        "data attached": data.trainer,
        "trainer": {k: id(v) for k, v in vars(own).items()},
        "callbacks": [(id(c), str(vars(c))) for c in own.callbacks],
        "loops": (str(own.fit_loop.state_dict()), own.global_step, own.state.status, own.model),
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "python": random.getstate(),
        "cwd": Path.cwd(),
        "environment": dict(os.environ),
        "flags": (torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()),
        "signals": signal.getsignal(signal.SIGINT),
    }


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(5)
    model = Net()
    model.eval()
    model.body[0].register_forward_hook(lambda *_: None)
    own = trainer(callbacks=[ModelCheckpoint(monitor="val_loss")], logger=True)
    return model, Rows(), own


def test_everything_is_as_it_was(scene, tmp_path):
    before = state(*scene)
    found = find(*scene)
    assert len(found.results) == 3
    assert state(*scene) == before
    assert list(tmp_path.iterdir()) == []


def test_after_a_gradient_and_a_fit_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, data, own = Net(), Rows(), trainer(enable_checkpointing=False)
    own.fit(model, datamodule=data)
    model(torch.ones(2, 4)).sum().backward()
    before = state(model, data, own)
    assert before["attached"] is False
    found = find(model, data, own)
    assert state(model, data, own) == before
    assert model._trainer is own
    assert any("copy of the model (" in note for note in found.notes)


class Breaks(Callback):
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_train_batch_end(self, *details: object) -> None:
        torch.set_default_dtype(torch.float64)
        raise self.error("in the middle")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_everything_is_as_it_was_also_if_it_ends_badly(scene, error, tmp_path):
    model, data, _ = scene
    own = trainer(callbacks=[Breaks(error)], enable_checkpointing=False)
    before = state(model, data, own)
    with pytest.raises(BaseException, match=r"in the middle|") as caught:
        find(model, data, own)
    assert isinstance(caught.value, (error, RuntimeError, KeyboardInterrupt))
    assert state(model, data, own) == before
    assert list(tmp_path.iterdir()) == []


def test_a_trial_is_the_users_own_training_from_that_seed():
    """Oracle: the training written by hand."""
    own = trainer(gradient_clip_val=0.1, accumulate_grad_batches=2, limit_train_batches=5)
    evaluate = evaluated(Net(depth=1), own)
    trial = Trial(InitSpec("keep"), {"lr": 0.05}, 7, 6)
    outcome = evaluate(trial, lambda step, value: False)
    pl.seed_everything(7, workers=True, verbose=False)
    model = Net(depth=1, lr=0.05)
    hand = trainer(
        gradient_clip_val=0.1,
        accumulate_grad_batches=2,
        limit_train_batches=5,
        max_steps=6,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    hand.fit(model, datamodule=Rows())
    assert outcome.info["final_fingerprint"] == fingerprint(model)
    assert evaluate(trial, lambda step, value: False).info == outcome.info


def test_loaders_give_what_a_fresh_run_gets_in_every_trial():
    generator = torch.Generator().manual_seed(9)
    data = rows()
    loader = DataLoader(data, batch_size=8, sampler=RandomSampler(data, generator=generator))
    fresh = [x[0, 0].item() for x, _ in loader]
    generator.manual_seed(9)
    seen: list[list[float]] = []

    class Watches(Net):
        def on_train_start(self) -> None:
            seen.append([])

        def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> None:
            seen[-1].append(batch[0][0, 0].item())

    before = generator.get_state()
    find(Watches(), train_dataloaders=loader, val_dataloaders=DataLoader(data, batch_size=8))
    assert len(seen) > 7
    assert all(order == fresh[: len(order)] for order in seen)
    assert torch.equal(generator.get_state(), before)
    assert loader._iterator is None


SETTINGS: dict[str, dict[str, Any]] = {
    "precision": {"precision": "bf16-mixed"},
    "double": {"precision": "64-true"},
    "clipping": {"gradient_clip_val": 0.3, "gradient_clip_algorithm": "value"},
    "accumulation": {"accumulate_grad_batches": 3},
    "limits": {"limit_train_batches": 3, "limit_val_batches": 0.5},
    "overfit": {"overfit_batches": 2},
    "epochs": {"max_epochs": 3, "max_steps": -1},
    "validation": {"val_check_interval": 2, "check_val_every_n_epoch": None},
    "time": {"val_check_interval": "00:00:01:00"},
    "loops": {"reload_dataloaders_every_n_epochs": 1, "inference_mode": False},
    "anomaly": {"detect_anomaly": True, "log_every_n_steps": 7},
    "plugin": {"plugins": [MixedPrecision("bf16-mixed", "cpu")]},
}


def known(own: pl.Trainer) -> dict[str, object]:
    names = (
        *("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches"),
        *("limit_train_batches", "limit_val_batches", "overfit_batches", "max_epochs", "max_steps"),
        *("check_val_every_n_epoch", "reload_dataloaders_every_n_epochs", "log_every_n_steps"),
        *("_detect_anomaly", "_val_check_time_interval", "default_root_dir"),
    )
    found: dict[str, object] = {name: getattr(own, name) for name in names}
    found["interval"] = vars(own).get("val_check_interval")
    found["inference"] = own.validate_loop.inference_mode
    found["kinds"] = (type(own.accelerator), type(own.precision_plugin))
    return found


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_trainer_like_the_users_own(settings):
    own = trainer(**settings)
    again = pl.Trainer(**{**SHORT, **settings_of(own)})
    assert known(again) == known(own)


def test_determinism_is_the_users(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        assert settings_of(trainer(deterministic=True))["deterministic"] is True
        assert settings_of(trainer(deterministic="warn"))["deterministic"] == "warn"
    finally:
        torch.use_deterministic_algorithms(False)
    assert "deterministic" not in settings_of(trainer())


class Kept(Callback):
    pass


def test_callbacks_about_training_are_copied_and_others_left_out():
    mine = Kept()
    own = trainer(callbacks=[mine, EarlyStopping("val_loss"), ModelCheckpoint(monitor="acc")])
    [copy] = settings_of(own)["callbacks"]
    assert isinstance(copy, Kept)
    assert copy is not mine
    assert watched(own) == ("acc", "min")
    mine.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="callback Kept cannot be copied"):
        settings_of(own)


def touched(change: Any) -> str:
    model = Net()
    change(model)
    return Fresh(model).why_copied


def test_an_untouched_model_is_built_again():
    model = Net(width=5)
    fresh = Fresh(model)
    assert fresh.why_copied == ""
    one, two = fresh(), fresh()
    assert one.head.in_features == 5
    assert fingerprint(one) != fingerprint(two)
    model.hparams["lr"] = 0.7  # as the learning-rate finder does
    assert Fresh(model).why_copied == ""
    assert Fresh(model)().hparams["lr"] == 0.7


CHANGES = {
    "loaded": lambda m: m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}),
    "frozen": lambda m: m.body.requires_grad_(False),
    "written": lambda m: nn.init.zeros_(m.head.bias),
    "replaced layer": lambda m: setattr(m, "head", nn.Sequential(nn.Linear(6, 1))),
    "another activation": lambda m: m.body.__setitem__(3, nn.ReLU()),
    "attribute": lambda m: setattr(m, "beta", 0.5),
    "hook": lambda m: m.body.register_forward_hook(lambda *_: None),
    "dtype": lambda m: m.double(),
    "width": lambda m: m.hparams.update(width=9),
    "eval": lambda m: m.body.eval(),
    "module in hparams": lambda m: m.hparams.update(depth=nn.Linear(1, 1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_touched_model_is_copied(change):
    assert touched(change)


def test_a_model_that_says_nothing_of_itself_is_copied():
    model = Secret(2.0)
    fresh = Fresh(model)
    assert "do not say how it was built (scale)" in fresh.why_copied
    assert fingerprint(fresh()) == fingerprint(model)


def test_a_model_that_cannot_be_copied_says_what_to_do():
    model = Secret(2.0)
    model.last = model.head(torch.ones(1, 6))
    with pytest.raises(ConfigError, match=r"neither built again nor copied .*save_hyperparameters"):
        Fresh(model)
    assert copied(Net())._trainer is None


def test_a_new_head_on_a_frozen_pretrained_body():
    pl.seed_everything(1, verbose=False)
    model = Net()
    trained = trainer(max_steps=60, enable_checkpointing=False)
    trained.fit(model, datamodule=Rows())
    model.body.requires_grad_(False)
    model.head = nn.Linear(6, 1)
    body = {k: v.clone() for k, v in model.body.named_parameters()}
    found = find(model, Rows(), strategies=("normal",), confirm_seeds=2)
    for trial in found.results:
        assert trial["metric"] is not None
    evaluate = evaluated(model, trainer())
    made: list[pl.LightningModule] = []
    make = evaluate.make

    def keep(*arguments: Any) -> Any:
        result = make(*arguments)
        made.append(result[0])
        return result

    evaluate.make = keep  # type: ignore[method-assign]
    evaluate(Trial(InitSpec("normal"), {}, 3, 4), lambda step, value: False)
    assert all(torch.equal(v, dict(made[0].body.named_parameters())[k]) for k, v in body.items())
    assert not torch.equal(made[0].head.weight, model.head.weight)


def test_the_winner_is_applied_with_its_learning_rate():
    """Oracle: the callback in a Trainer of its own."""
    model, data = Net(), Rows()
    found = find(model, data)
    winner = next(one for one in found.candidates if one.spec.strategy == "orthogonal")
    won = replace(found, best=replace(winner, config={"lr": 0.025}))
    before = state(model, data, trainer())["torch"]
    won.apply(seed=4)
    assert torch.get_rng_state().tolist() == before
    other = Net()
    own = trainer(max_steps=0, callbacks=[InitCallback("orthogonal", seed=4, verbose=False)])
    own.fit(other, datamodule=Rows())
    assert fingerprint(model) == fingerprint(other)
    assert model.hparams["lr"] == 0.025
    assert model._trainer is None
    third = Net()
    won.apply(third, seed=4)
    assert fingerprint(third) == fingerprint(model)


def test_without_a_winner_nothing_is_applied():
    model = Net()
    found = find(model, Rows())
    kept = replace(found, best=found.baseline)
    before = fingerprint(model)
    kept.apply()
    assert fingerprint(model) == before
    assert model.hparams["lr"] == 0.1
    assert kept.suggestion() is None


def test_the_result_is_shaped_like_the_finders():
    found = find(Net(), Rows(), trials=4)
    assert {row["spec"]["strategy"] for row in found.results} >= {"keep", "auto", "orthogonal"}
    assert len(found.plot().data) > 0
    assert isinstance(found.to_callback(), InitCallback)
    assert found.monitor == "val_loss"
    assert found.rate_key == "lr"
    assert found.steps == 4


def test_the_trainers_checkpoint_says_what_is_best():
    own = trainer(callbacks=[ModelCheckpoint(monitor="train_loss", mode="max")])
    found = find(Net(), Rows(), own)
    assert (found.monitor, found.mode) == ("train_loss", "max")


def test_trials_are_no_longer_than_the_users_training():
    assert find(Net(), Rows(), trainer(max_steps=3), steps=9, confirm_steps=None).steps == 3


def test_the_same_seed_finds_the_same():
    one, two = find(Net(), Rows(), trials=4), find(Net(), Rows(), trials=4)
    assert [r["curve"] for r in one.results] == [r["curve"] for r in two.results]


MISTAKES = {
    "lr": ({"lr_name": "rate"}, r"lr_name: unknown attribute of the model 'rate'"),
    "monitor": ({"monitor": "val_los"}, r"monitor: unknown metric 'val_los': did you mean 'val_l"),
    "both": ({"space": Space(("normal",))}, r"strategies or a space, but not both"),
    "loaders": ({"train_dataloaders": 3, "datamodule": Rows()}, r"a datamodule or loaders"),
    "no data": ({"datamodule": None}, r"no training data"),
    "module": ({"datamodule": DataLoader(rows())}, r"pass loaders as train_dataloaders="),
    "key": (
        {"space": Space(("normal",), {"lrr": around(0.1)}), "strategies": None},
        r"unknown attribute of the model 'lrr': did you mean 'lr'",
    ),
}


@pytest.mark.parametrize(("arguments", "text"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_says_what_is_legal(arguments, text):
    given = {"datamodule": Rows(), "strategies": ("normal",), **arguments}
    with pytest.raises(ConfigError, match=text):
        InitTuner(trainer()).find(Net(), **given)


def test_a_development_run_is_refused():
    with pytest.raises(ConfigError, match="fast_dev_run"):
        find(Net(), Rows(), trainer(fast_dev_run=True))


@pytest.mark.slow
def test_worker_processes_find_the_same():
    here, there = find(Net(), Rows()), find(Net(), Rows(), workers=2)
    assert [r["metric"] for r in there.results] == [r["metric"] for r in here.results]
    assert [r.info["final_fingerprint"] for r in there.baseline.runs] == [
        r.info["final_fingerprint"] for r in here.baseline.runs
    ]


def test_a_compiled_model_is_searched_without_compiling_it(scene):
    model = Net()
    result = find(torch.compile(model, backend="eager"), Rows())
    assert result.baseline.runs[0].metric == find(model, Rows()).baseline.runs[0].metric
    result.apply(seed=3)
    from_compiled(torch.compile(model, backend="eager"))  # as `Trainer.fit` takes it
    with pytest.raises(ConfigError, match="is compiled: search first"):
        find(model, Rows())
    with pytest.raises(ConfigError, match="must be a LightningModule, but got Linear"):
        find(nn.Linear(4, 1), Rows())


def test_what_hooks_write_down_on_the_model_is_put_back(scene):
    model = Secret(1.0)
    model.seen, model.calls = [], 0

    def hook(*_: object) -> None:
        model.seen.append(1)
        model.calls += 1

    model.body[0].register_forward_hook(hook)
    before = sorted(vars(model))
    find(model, Rows())
    assert (model.seen, model.calls, sorted(vars(model))) == ([], 0, before)


def test_the_default_space_is_for_this_model_and_several_objectives_are_a_front():
    trainer = pl.Trainer(max_steps=40, accelerator="cpu", logger=False, enable_checkpointing=False)
    found = InitTuner(trainer).find(
        Net(), Rows(), trials=8, steps=10, confirm_seeds=2, objective=["last", "gap"]
    )
    assert [goal.name for goal in found.goals] == ["val_loss", "gap of val_loss"]
    assert any(note.startswith("not tried: ") for note in found.notes)
    tried = {row["spec"]["strategy"] for row in found.results}
    assert "xavier_normal" in tried
    assert not tried & {"gpt2", "recurrent", "fixup", "lsuv"}
    assert {run.steps for run in found.baseline.runs} == {30}, "three times a trial's"
