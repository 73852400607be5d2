"""Training with the callback is bit for bit the training without it."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_init import HealthMonitor, InitCallback
from tests.callbacks import nets
from tests.callbacks.nets import Digits, Metered, Rows, Stream, digits, mlp, noisy, seed_all


class OwnNoise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.rand(x.shape, generator=self.generator)


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Noise from generators of its own, and from all global ones."""

    def __init__(self) -> None:
        self.own = torch.Generator().manual_seed(1)
        self.others = {"numpy": [np.random.default_rng(1)], "python": random.Random(1)}

    def __len__(self) -> int:
        return 640

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = digits()[index]
        noise = torch.rand(64, generator=self.own) + float(self.others["numpy"][0].random())
        noise += self.others["python"].random()
        return x + noise + torch.rand(64) + float(np.random.rand()), y  # noqa: NPY002


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "shuffled": lambda: DataLoader(digits(), 32, shuffle=True),
    "own_generator": lambda: DataLoader(
        digits(), 32, shuffle=True, generator=torch.Generator().manual_seed(2)
    ),
    "stream": lambda: DataLoader(Stream(), 32),
    "augmented": lambda: DataLoader(Augmented(), 32, shuffle=True),
}
MODULES: dict[str, Callable[[], Digits]] = {
    "noisy": lambda: Digits(noisy()),
    "lstm": lambda: Digits(Rows()),
    "metrics": Metered,
    "own_noise": lambda: Digits(nn.Sequential(OwnNoise(), noisy())),
}


def outcome(make: Callable[[], Digits], loader: Any, *callbacks: Any, **arguments: Any) -> Any:
    """Everything that training leaves behind."""
    seed_all()
    module, data = make(), loader()
    seed_all(7)
    trainer = nets.fit(module, *callbacks, loader=data, **{"max_steps": 20, **arguments})
    generator = getattr(data, "generator", None)
    return {
        "rng": nets.random_states(),
        "state": dict(module.state_dict()),
        "optimizer": trainer.optimizers[0].state_dict(),
        "batches": module.seen,
        "taken": getattr(getattr(data, "dataset", None), "taken", 0),
        "order": None if generator is None else generator.get_state(),
        "metrics": dict(trainer.callback_metrics),
        "mode": [m.training for m in module.modules()],
    }


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    different = [key for key in one if not nets.same(one[key], two[key])]
    assert not different


@pytest.mark.case(41)
@pytest.mark.parametrize("loader", LOADERS)
def test_same_training_for_any_data(loader: str) -> None:
    make = MODULES["noisy"]
    plain = outcome(make, LOADERS[loader])
    assert len(plain["batches"]) == 20
    assert_same(plain, outcome(make, LOADERS[loader], InitCallback("keep", monitor_steps=15)))


@pytest.mark.case(41, 50)
@pytest.mark.parametrize("module", ["lstm", "metrics", "own_noise"])
def test_same_training_for_any_module(module: str) -> None:
    make, loader = MODULES[module], LOADERS["shuffled"]
    assert_same(outcome(make, loader), outcome(make, loader, InitCallback("keep")))


@pytest.mark.case(41)
def test_same_training_with_a_tensorboard_logger(tmp_path: Path) -> None:
    def run(folder: str, *callbacks: Any) -> Any:
        logger = TensorBoardLogger(tmp_path / folder)
        return outcome(MODULES["noisy"], LOADERS["shuffled"], *callbacks, logger=logger)

    assert_same(run("plain"), run("watched", InitCallback("keep")))


@pytest.mark.case(41)
def test_same_training_under_a_monitor_alone_and_with_validation_in_between() -> None:
    def run(*callbacks: Any) -> Any:
        return outcome(
            lambda: Digits(noisy()),
            LOADERS["shuffled"],
            *callbacks,
            accumulate_grad_batches=3,
            gradient_clip_val=0.1,
        )

    plain = run()
    assert_same(plain, run(HealthMonitor()))
    assert_same(plain, run(InitCallback("keep", monitor_steps=0)))


@pytest.mark.case(41)
def test_random_states_are_those_of_a_run_with_another_scheme_too() -> None:
    def rng(strategy: str) -> Any:
        make = MODULES["noisy"]
        return outcome(make, LOADERS["shuffled"], InitCallback(strategy, seed=1))

    kept, drawn = rng("keep"), rng("lsuv")
    assert nets.same(kept["rng"], drawn["rng"])
    assert nets.same(kept["batches"], drawn["batches"])
    assert not nets.same(kept["state"], drawn["state"])


class Popping(Digits):
    """A training step that takes its batch apart and writes into it."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        y = batch.pop("y")
        return self.loss((batch["x"].mul_(0.5), y))


@pytest.mark.case(41)
def test_a_step_that_changes_its_batch_gets_an_untouched_one() -> None:
    def as_dict(samples: list[Any]) -> dict[str, Tensor]:
        xs, ys = zip(*samples, strict=True)
        return {"x": torch.stack(xs), "y": torch.stack(ys)}

    def loader() -> DataLoader[Any]:
        return DataLoader(digits(), 32, collate_fn=as_dict)

    callback = InitCallback("keep")
    plain = outcome(lambda: Popping(noisy()), loader)
    assert_same(plain, outcome(lambda: Popping(noisy()), loader, callback))
    assert callback.report is not None
    assert not callback.report.blind


class Counts(torch.utils.data.Dataset[Any]):
    """A data set whose samples depend on how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        x, y = nets.digits()[index]
        return x + 0.001 * self.asked, y


class Teaches(Digits):
    """Averages a teacher, clips itself and counts, all inside the step."""

    def __init__(self) -> None:
        super().__init__(mlp())
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)
        self.queue: Any = deque([0.0], maxlen=3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                old.mul_(0.9).add_(new, alpha=0.1)
                new.data.clamp_(-0.1, 0.1)
        self.queue.append(self.queue[-1] + 0.1)
        return self.loss(batch) + self.queue[-1] * self.net[-1].weight.square().sum()


@pytest.mark.case(41)
@pytest.mark.filterwarnings("ignore:lightning_init. WARNING frozen_layers")  # the teacher
@pytest.mark.parametrize("strategy", ["keep", "constant"])
def test_a_step_that_writes_weights_and_state_trains_the_same(strategy: str) -> None:
    def run(*callbacks: pl.Callback) -> Any:
        nets.seed_all(1)
        module = Teaches()
        if strategy == "constant":  # no tensor is in the scope that is drawn
            callbacks = tuple(InitCallback("constant", scope="net.0.bias") for _ in callbacks)
        if not callbacks and strategy == "constant":
            torch.nn.init.zeros_(module.net[0].bias)
        trainer = nets.trainer(*callbacks, max_steps=6)
        trainer.fit(module, DataLoader(Counts(), batch_size=16))
        return module

    plain, watched = run(), run(InitCallback("keep"))
    assert nets.same(nets.weights(plain), nets.weights(watched))
    assert plain.queue == watched.queue
    assert plain.seen == watched.seen
