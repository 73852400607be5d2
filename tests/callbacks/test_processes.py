"""Two processes start from the same weights as one, seeded or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

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


def spawned(folder: Path, module: Digits, callback: InitCallback, loader: Any = None) -> Any:
    folder.mkdir()
    nets.fit(
        module,
        callback,
        Dump(folder),
        loader=loader,
        strategy="ddp_spawn",
        devices=2,
        max_steps=2,
        default_root_dir=folder,
    )
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
