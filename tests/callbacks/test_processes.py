"""Two processes start from the same weights as one, seeded or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from lightning_init import InitCallback, InitSpec
from tests.callbacks import nets
from tests.callbacks.nets import BuiltInConfigureModel, Digits, Stream, noisy


class Dump(pl.Callback):
    """Each process writes the weights that its first batch meets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 0:
            torch.save(nets.weights(pl_module), self.folder / f"{trainer.global_rank}.pt")


def fit(*arguments: Any, **given: Any) -> None:
    """Two processes; once more if one was aborted as it ended while gloo's threads still ran."""
    given = {"strategy": "ddp_spawn", "devices": 2, "max_steps": 2, **given}
    try:
        nets.fit(*arguments, **given)
    except ProcessExitedException as error:
        if error.signal_name != "SIGABRT":
            raise
        nets.fit(*arguments, **given)


def spawned(folder: Path, module: Digits, callback: InitCallback, loader: Any = None) -> Any:
    folder.mkdir()
    fit(module, callback, Dump(folder), loader=loader, default_root_dir=folder)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what spawning warns of is not ours
def test_all_processes_start_from_the_weights_of_one(tmp_path: Path) -> None:
    nets.fit(Digits(noisy()), InitCallback("lsuv", seed=3), one := nets.AtStart(), max_steps=1)
    for weights in spawned(tmp_path / "seeded", Digits(noisy()), InitCallback("lsuv", seed=3)):
        assert nets.same(weights, one.weights)
    data = json.loads((tmp_path / "seeded/init.json").read_text())
    assert data["seed"] == 3
    assert json.loads((tmp_path / "seeded/health.json").read_text())["findings"] == []

    torch.seed()  # nobody chose a seed
    first, second = spawned(
        tmp_path / "unseeded", BuiltInConfigureModel(), InitCallback("orthogonal")
    )
    assert nets.same(first, second)
    seed = json.loads((tmp_path / "unseeded/init.json").read_text())["seed"]
    again = InitCallback("orthogonal", seed=seed)
    nets.fit(BuiltInConfigureModel(), again, start := nets.AtStart(), max_steps=1)
    assert nets.same(first, start.weights)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_each_process_sees_another_first_batch_but_weights_agree(tmp_path: Path) -> None:
    stream = torch.utils.data.DataLoader(Stream(), 32)
    first, second = spawned(
        tmp_path / "stream", Digits(noisy()), InitCallback("lsuv", seed=3), stream
    )
    assert nets.same(first, second)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_what_is_learned_is_the_same_in_all_processes(tmp_path: Path) -> None:
    spec = InitSpec("gradinit", {"steps": 4}, seed=3)
    nets.fit(Digits(noisy()), InitCallback(spec), one := nets.AtStart(), max_steps=1)
    for weights in spawned(tmp_path / "learned", Digits(noisy()), InitCallback(spec)):
        assert nets.same(weights, one.weights)


class OneIsSick(Digits):
    """Only the second process meets a loss that is none."""

    def __init__(self, when: int) -> None:
        super().__init__(nets.mlp())
        self.when = when

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        bad = self.trainer.global_rank == 1 and batch_idx >= self.when
        return loss * torch.nan if bad else loss


class Tell(pl.Callback):
    """Each process writes what its report says, and how far it came."""

    def __init__(self, folder: Path, callback: InitCallback) -> None:
        self.folder, self.callback = folder, callback

    def on_train_end(self, trainer, pl_module) -> None:
        report = self.callback.report
        data = {
            "step": trainer.global_step,
            "findings": [finding.to_dict() for finding in report.findings],
            "attempts": [str(attempt) for attempt in report.attempts],
        }
        (self.folder / f"tell{trainer.global_rank}.json").write_text(json.dumps(data))


def told(folder: Path, module: Digits, callback: InitCallback, **arguments: Any) -> list[Any]:
    folder.mkdir()
    given = {"default_root_dir": folder, **arguments}
    loader = given.pop("loader", None)
    fit(module, Tell(folder, callback), callback, Dump(folder), loader=loader, **given)
    return [json.loads((folder / f"tell{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("action", ["warn", "stop"])
def test_what_one_process_finds_all_act_on(tmp_path: Path, action: Any) -> None:
    callback = InitCallback("orthogonal", seed=3, on_unhealthy=action)
    one, two = told(tmp_path / action, OneIsSick(3), callback, max_steps=12)
    assert one == two
    assert one["findings"][0]["detector"] == "non_finite"
    assert one["step"] == 12 if action == "warn" else one["step"] < 10
    data = json.loads((tmp_path / action / "health.json").read_text())
    assert [f["detector"] for f in data["findings"]] == [f["detector"] for f in one["findings"]]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_what_one_process_finds_is_raised(tmp_path: Path) -> None:
    callback = InitCallback("orthogonal", seed=3, on_unhealthy="raise")
    with pytest.raises(Exception, match="UnhealthyError: unhealthy: ERROR non_finite"):
        told(tmp_path / "raise", OneIsSick(3), callback, max_steps=12)
    assert json.loads((tmp_path / "raise" / "health.json").read_text())["findings"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_all_processes_are_rescued_alike(tmp_path: Path) -> None:
    for rung in ("orthogonal", "lsuv"):
        callback = InitCallback(
            InitSpec("normal", {"std": 0.001}), seed=3, on_unhealthy="rescue", ladder=[rung]
        )
        stream = torch.utils.data.DataLoader(Stream(), 32)  # each process meets other samples
        folder = tmp_path / rung
        one, two = told(folder, Digits(nets.sick(12)), callback, max_steps=2, loader=stream)
        assert one == two
        assert one["attempts"][-1] == f"{rung}: healthy (kept)"
        first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
        assert nets.same(first, second)
    nets.fit(Digits(nets.sick(12)), InitCallback("orthogonal", seed=3), start := nets.AtStart())
    first = torch.load(tmp_path / "orthogonal" / "0.pt")
    assert nets.same(first, start.weights)
