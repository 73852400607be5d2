"""Data that remember: samplers, DataModules and worker processes go on as without the callback."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from lightning_init import InitCallback
from tests.callbacks.nets import Stream, digits
from tests.callbacks.test_non_interference import LOADERS, MODULES, Augmented, assert_same, outcome


class Remembers(Sampler[int]):
    """An order of its own, with a count of the epochs and a place in it, as resumable samplers."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(4)
        self.epoch = self.given = 0

    def __len__(self) -> int:
        return 320

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        for index in torch.randperm(1700, generator=self.generator)[: len(self)].tolist():
            self.given += 1
            yield index


class Keeper(pl.LightningDataModule):
    """A DataModule that draws its data, counts its loaders and keeps its sampler."""

    def __init__(self, **loading: Any) -> None:
        super().__init__()
        self.loading, self.loaders = loading, 0
        self.noise, self.sampler = random.Random(2), Remembers()

    def setup(self, stage: str) -> None:
        self.shift = torch.rand(64)  # from the global generator

    def train_dataloader(self) -> DataLoader[Any]:
        self.loaders += 1
        shift, more = self.shift, self.noise.random()
        rows = [(x + shift + more, y) for x, y in digits()]
        return DataLoader(rows, 32, sampler=self.sampler, **self.loading)  # type: ignore[arg-type]

    def state(self) -> Any:
        sampler = self.sampler
        drawn = (sampler.epoch, sampler.given, sampler.generator.get_state())
        return self.loaders, self.noise.getstate(), drawn


@pytest.mark.case(41, 52)
@pytest.mark.parametrize("reload", [0, 1, 2])
@pytest.mark.parametrize("strategy", ["keep", "lsuv"])
def test_a_data_module_with_a_state_of_its_own(reload: int, strategy: str) -> None:
    """Whose loaders Lightning makes anew in some epochs."""

    def run(*callbacks: Any) -> Any:
        data = Keeper()
        found = outcome(
            MODULES["noisy"], lambda: data, *callbacks, max_steps=24,
            reload_dataloaders_every_n_epochs=reload,
        )  # fmt: skip
        return {**found, "data": data.state()}

    plain, watched = run(), run(InitCallback(strategy, seed=1, monitor_steps=15))
    assert plain["data"][0] == {0: 1, 1: 3, 2: 2}[reload]
    if strategy == "lsuv":  # other weights, but the same data and random numbers
        for key in ("state", "optimizer", "metrics"):
            plain.pop(key)
            watched.pop(key)
    assert_same(plain, watched)


@pytest.mark.case(53)
@pytest.mark.parametrize("loader", ["own_generator", "augmented"])
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled:UserWarning")
def test_overfitting_a_few_batches(loader: str) -> None:
    def run(*callbacks: Any) -> Any:
        return outcome(MODULES["noisy"], LOADERS[loader], *callbacks, overfit_batches=2)

    plain = run()
    callback = InitCallback("keep", monitor_steps=15)
    if loader == "own_generator":  # the same two batches, again and again
        assert len(set(plain["batches"])) == 2
    assert_same(plain, run(callback))
    assert callback.report is not None
    assert len(callback.report.readings.loss) == 20


class Shards(Stream):
    """Each worker streams its own part."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        info = torch.utils.data.get_worker_info()
        assert info is not None  # nothing reads a stream but its workers
        for index, sample in enumerate(super().__iter__()):
            if index % info.num_workers == info.id:
                yield sample[0] + torch.rand(64), sample[1]


WORKERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(digits(), 32, shuffle=True, num_workers=2),
    "own_generator": lambda: DataLoader(
        Augmented(), 32, shuffle=True, num_workers=1, generator=torch.Generator().manual_seed(2)
    ),
    "stream": lambda: DataLoader(Shards(), 32, num_workers=2),
    "persistent": lambda: DataLoader(
        Augmented(), 32, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "data_module": lambda: Keeper(num_workers=1, persistent_workers=True),
}


@pytest.mark.slow
@pytest.mark.case(41)
@pytest.mark.parametrize("loader", WORKERS)
def test_same_training_with_worker_processes(loader: str) -> None:
    def run(*callbacks: Any) -> Any:
        return outcome(
            MODULES["noisy"], WORKERS[loader], *callbacks, limit_train_batches=6, max_steps=14
        )

    plain = run()
    assert len(plain["batches"]) == 14
    assert_same(plain, run(InitCallback("keep", monitor_steps=12)))
