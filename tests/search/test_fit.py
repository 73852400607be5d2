"""Trials share their random numbers and nothing else."""

import contextlib
import gc
import json
import os
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader

from lightning_init import InitSpec
from lightning_init.search.evaluate import JobEvaluate
from lightning_init.search.isolated import isolated
from lightning_init.search.job import ConfigError, Job
from lightning_init.search.objectives import Objective
from lightning_init.search.trial import Trial
from tests.search import models

STEPS = 9
SEEN: list[tuple[float, ...]] = []
ALIVE: list[weakref.ref] = []


class Noted(pl.LightningModule):
    """Writes down its batches and its dropout masks."""

    def __init__(self, lr: float = 0.05, trouble: str = "") -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 8))
        self.drop, self.last = nn.Dropout(0.4), nn.Linear(8, 1)
        self.lr, self.trouble = lr, trouble
        ALIVE.append(weakref.ref(self))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        mask = self.drop(torch.ones(len(batch[0]), 8))
        if self.trainer.training and torch.is_grad_enabled():
            step = float(self.trainer.global_step), float(batch_idx)
            SEEN.append((*step, float(batch[0].sum()), float(mask.sum()), float(np.random.rand())))  # noqa: NPY002
        if self.trouble and self.trainer.global_step == 3:
            misbehave(self.trouble)
        out = self.last(self.first(batch[0][:, None]).tanh() * mask)
        return (out - batch[1]).square().mean()

    def validation_step(self, batch: list[Tensor]) -> None:
        out = self.last(self.first(batch[0][:, None]).tanh())
        self.log("val_loss", (out - batch[1]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def misbehave(how: str) -> None:
    if how == "memory":
        raise torch.OutOfMemoryError("no memory for a tensor")
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium")
    torch.backends.mkldnn.enabled = False
    torch.set_num_threads(2)
    torch.autograd.set_detect_anomaly(True)
    torch.set_autocast_enabled("cpu", True)
    torch.set_grad_enabled(False) if how == "grad" else None
    register_optimizer_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())
    nn.modules.module.register_module_forward_hook(lambda module, args, out: out * 1.5)
    warnings.simplefilter("error")
    np.seterr(all="raise")
    os.environ["PL_GLOBAL_SEED"] = "17"
    os.environ["OF_A_TRIAL"] = "1"
    os.chdir("/")
    if how == "raise":
        raise RuntimeError("a trial that fails")


def config(**init) -> dict:
    model = {"class_path": f"{__name__}.Noted", "init_args": init}
    data = {"class_path": "tests.search.models.Data"}
    return {"model": model, "data": data, "trainer": {"accelerator": "cpu"}}


def evaluate(**init) -> JobEvaluate:
    return JobEvaluate(Job(config(**init)).plain(), (Objective("last", "val_loss"),))


def trial(strategy: str = "keep", values: dict | None = None, **more) -> Trial:
    params = more.pop("params", {})
    settings = {"seed": 3, "steps": STEPS, "gated": False, **more}
    return Trial(InitSpec(strategy, params), values or {}, **settings)


def go_on(step: int, value: float) -> bool:
    return False


def drawn(run: JobEvaluate, wanted: Trial) -> list[tuple[float, ...]]:
    """What each training step saw: of several passes through one batch the last."""
    SEEN.clear()
    run(wanted, go_on)
    return list({seen[:2]: seen for seen in SEEN}.values())


@pytest.mark.parametrize(
    ("strategy", "params"),
    [
        *((name, {}) for name in ("auto", "orthogonal", "normal", "lsuv", "channel_norm")),
        ("metainit", {"steps": 3}),
        ("gradinit", {"steps": 2}),
    ],
)
def test_trials_of_a_seed_share_batches_masks_and_draws(strategy, params):
    run = evaluate()
    common = drawn(run, trial())
    assert len(common) == STEPS
    assert drawn(run, trial(strategy, params=params)) == common
    assert drawn(run, trial(strategy, {"model.init_args.lr": 0.1}, params=params)) == common
    assert drawn(run, trial(seed=4)) != common


def test_marks_and_measures_share_them_too():
    run = evaluate()
    assert drawn(run, trial(marks=(2, 5), measured=True)) == drawn(run, trial())


@pytest.mark.parametrize("how", ["quietly", "grad", "raise"])
def test_a_trial_that_misbehaves_does_not_reach_the_next(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clean = evaluate()(trial(), go_on)
    environment, path = dict(os.environ), Path.cwd()
    with contextlib.suppress(RuntimeError):
        evaluate(trouble=how)(trial(), go_on)
    assert (dict(os.environ), Path.cwd()) == (environment, path)
    assert torch.get_default_dtype() == torch.float32
    assert np.geterr()["divide"] == "warn"
    after = evaluate()(trial(), go_on)
    assert (after.metric, after.curve, after.info) == (clean.metric, clean.curve, clean.info)


def test_random_states_are_as_before():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    evaluate()(trial(), go_on)
    assert torch.equal(torch.rand(3), expected)


def test_isolated_puts_back_after_an_error(tmp_path):
    before = torch.get_num_threads(), Path.cwd()

    def wander() -> None:
        torch.set_num_threads(before[0] + 1)
        os.chdir(tmp_path)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), isolated():
        wander()
    assert (torch.get_num_threads(), Path.cwd()) == before


def test_memory_that_runs_out_is_the_trials_own_and_its_model_is_gone():
    ALIVE.clear()
    with pytest.raises(torch.OutOfMemoryError, match="no memory for a tensor"):
        evaluate(trouble="memory")(trial(), go_on)
    gc.collect()
    assert [ref() for ref in ALIVE] == [None]


def test_a_finished_trial_keeps_no_model():
    ALIVE.clear()
    run = evaluate()
    run(trial("orthogonal"), go_on)
    gc.collect()
    assert [ref() for ref in ALIVE] == [None]
    run(trial("normal"), go_on)
    assert len(ALIVE) == 2


def test_facts_of_a_trial():
    found = evaluate()(trial("orthogonal", measured=True), go_on)
    assert found.info["lr"] == [[1, 0.05]]
    assert found.info["calibration"] == ""
    assert found.info["steps"] == STEPS
    assert found.info["distance"] > 0
    json.dumps(dict(found.info))


def test_a_calibration_that_was_taken_back_is_told():
    deep = {
        "model": {"class_path": "examples.digits.DigitsMLP", "init_args": {"depth": 40}},
        "data": {"class_path": "examples.digits.Digits"},
        "trainer": {"accelerator": "cpu"},
    }
    run = JobEvaluate(Job(deep).plain(), (Objective("last", "val_loss"),))
    found = run(trial("lsuv", steps=2), go_on)
    assert found.info["calibration"].startswith("lsuv taken back: ")


def test_a_mistaken_monitor_is_the_users():
    run = JobEvaluate(Job(config()).plain(), (Objective("area", "val_los"),))
    with pytest.raises(ConfigError, match=r"unknown metric 'val_los'.*val_loss"):
        run(trial(), go_on)


ALONE = """
import json, sys, warnings
warnings.simplefilter("ignore")
from tests.search.test_fit import evaluate, go_on, trial
found = evaluate()(trial("orthogonal", {"model.init_args.lr": 0.1}, seed=5), go_on)
print("FOUND" + json.dumps([found.metric, found.info["init_fingerprint"],
                            found.info["final_fingerprint"], found.curve[-1][1]]))
"""


@pytest.mark.slow
def test_the_same_trial_alone_in_a_fresh_process():
    run = evaluate()
    run(trial("lsuv"), go_on)
    run(trial("orthogonal", {"model.init_args.lr": 0.3}, seed=9), go_on)
    found = run(trial("orthogonal", {"model.init_args.lr": 0.1}, seed=5), go_on)
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))
    names = ("init_fingerprint", "final_fingerprint")
    here = [found.metric, *(found.info[name] for name in names), found.curve[-1][1]]
    assert json.loads(line.removeprefix("FOUND")) == here


def test_loaders_that_fail_leave_the_next_trial_its_own():
    made = DataLoader.__init__

    class Failing(models.Data):
        def train_dataloader(self):
            raise OSError("the disk is gone")

    def fit(data: pl.LightningDataModule) -> None:
        names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        trainer = pl.Trainer(max_steps=1, accelerator="cpu", **dict.fromkeys(names, False))
        trainer.fit(models.Net(), datamodule=data)

    with isolated():
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                fit(Failing())
    assert DataLoader.__init__ is made
    assert not [name for name in vars(DataLoader) if name.startswith("__old")]
    fit(models.Data())
