"""Data prepared once for many trials gives the weights of a plain fit, whatever the data does."""

import random
import time
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, random_split

from lightning_init import InitSpec
from lightning_init.search.evaluate import JobEvaluate
from lightning_init.search.fit import _FREE
from lightning_init.search.job import Job
from lightning_init.search.look import look
from lightning_init.search.objectives import Objective
from lightning_init.search.trial import Trial
from lightning_init.strategies.apply import fingerprint
from tests.search.models import Net

CALLS: list[str] = []
STEPS = 11


def rows(count: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return x, x.sum(1, keepdim=True).sin()


class Plain(pl.LightningDataModule):
    count = 64

    def prepare_data(self) -> None:
        CALLS.append("prepare")

    def setup(self, stage: str) -> None:
        CALLS.append(stage)
        self.train = TensorDataset(*rows(self.count))
        self.val = TensorDataset(*rows(16))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=8)


class Large(Plain):
    count = 2**17  # rows of 16 bytes: shared

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=2**13, shuffle=True)


class Split(Plain):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.train, self.val = random_split(self.train, [48, 16])


class OwnGenerator(Plain):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.own, self.other = torch.Generator().manual_seed(7), np.random.default_rng(1)
        self.third = random.Random(2)

    def train_dataloader(self) -> DataLoader:
        def collate(samples):
            shift = float(self.other.normal()) + self.third.random()
            return [torch.stack(each) + shift for each in zip(*samples, strict=True)]

        return DataLoader(
            self.train, batch_size=8, shuffle=True, generator=self.own, collate_fn=collate
        )


class DrawsInConstructor(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.randn(64, 4)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        x, y = rows()
        self.train = TensorDataset(x + 0.1 * self.noise, y)


class HoldsTensors(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.kinds = {
            "number": torch.tensor(0.5),
            "none": torch.empty(0, 3),
            "half": torch.ones(3, dtype=torch.bfloat16),
            "turned": torch.arange(6).view(2, 3).T,
            "learned": torch.nn.Parameter(torch.ones(2)).detach().requires_grad_(),
            "generator": torch.Generator().manual_seed(3),
        }


class Shifted(Plain):
    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = torch.tensor([0.0, shift])


class DrawsNumpy(Plain):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.train.tensors[0].add_(float(np.random.rand()))  # noqa: NPY002


class DrawsWhilePreparing(Plain):
    def prepare_data(self) -> None:
        super().prepare_data()
        random.random()

    def train_dataloader(self) -> DataLoader:
        random.seed(random.randrange(9) + CALLS.count("prepare") * 0)
        return super().train_dataloader()


class WithWorkers(Plain):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=8, shuffle=True, num_workers=1)


class Stream(IterableDataset):
    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self):
        self.epoch += 1
        x, y = rows()
        order = torch.randperm(64, generator=torch.Generator().manual_seed(self.epoch))
        yield from zip(x[order] + torch.rand(1), y[order], strict=True)


class Streams(Plain):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.train = Stream()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=8)


class ChangesInLoader(Plain):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.times = 0

    def train_dataloader(self) -> DataLoader:
        self.times += 1
        x, y = self.train.tensors
        self.train = TensorDataset(x * (1 + self.times), y)
        return super().train_dataloader()


class WritesIntoData(Large):
    def train_dataloader(self) -> DataLoader:
        self.train.tensors[0].mul_(1.5)
        return super().train_dataloader()


class SeedsByHand(Plain):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        generator = torch.Generator().manual_seed(torch.initial_seed())
        self.train = random_split(self.train, [40, 24], generator)[0]


class AsksForSteps(Plain):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.train = TensorDataset(*(each[: 8 * self.trainer.max_steps] for each in rows()))


class AsksForProcesses(Plain):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        assert isinstance(self.trainer, pl.Trainer)
        self.share = 8 // self.trainer.world_size


class OpensFile(Plain):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.file = Path(__file__).open()  # noqa: SIM115

    def train_dataloader(self) -> DataLoader:
        self.file.close()
        return super().train_dataloader()


class TearsDown(Plain):
    def teardown(self, stage: str) -> None:
        del self.train


class Brings(Net):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*rows()), batch_size=8, shuffle=True)


ONCE = [
    *(Plain, Large, OwnGenerator, WithWorkers, Streams, ChangesInLoader, AsksForProcesses),
    *(DrawsInConstructor, HoldsTensors),
]
AFRESH = [
    *(Split, DrawsNumpy, DrawsWhilePreparing, WritesIntoData),
    *(AsksForSteps, OpensFile, TearsDown),
]


def evaluate(data: type | None, model: str = "tests.search.models.Net", **more) -> JobEvaluate:
    config = {"model": {"class_path": model}, "trainer": {"accelerator": "cpu"}}
    if data is not None:
        config["data"] = {"class_path": f"{__name__}.{data.__name__}"}
    plain = Job(yaml.safe_load(yaml.safe_dump(config))).plain()
    return JobEvaluate(plain, (Objective("last", more.pop("monitor", "val_loss")),), **more)


def trial(seed: int = 3, strategy: str = "orthogonal") -> Trial:
    return Trial(InitSpec(strategy), {}, seed, STEPS, gated=False)


def alone(data: type, seed: int) -> str:
    """A plain fit of an as-built model."""
    pl.seed_everything(seed, workers=True, verbose=False)
    model, made = Net(), data()  # as LightningCLI does
    trainer = pl.Trainer(**{**_FREE, "accelerator": "cpu", "max_steps": STEPS})
    trainer.fit(model, datamodule=made)
    return fingerprint(model)


def go_on(step: int, value: float) -> bool:
    return False


@pytest.mark.filterwarnings("ignore:.*num_workers.*:UserWarning")
@pytest.mark.parametrize("data", [*ONCE, *AFRESH, SeedsByHand])
def test_every_trial_is_the_plain_fit_bit_for_bit(data):
    run = evaluate(data)
    for seed in (3, 3, 4, 3):
        found = run(trial(seed, "keep"), go_on)
        assert found.info["final_fingerprint"] == alone(data, seed), seed


@pytest.mark.filterwarnings("ignore:.*num_workers.*:UserWarning")
@pytest.mark.parametrize(
    ("data", "once"), [*((data, True) for data in ONCE), *((data, False) for data in AFRESH)]
)
def test_who_is_prepared_once(data, once):
    run = evaluate(data)
    run(trial(), go_on)
    CALLS.clear()
    for strategy in ("normal", "xavier_normal", "keep"):
        run(trial(strategy=strategy), go_on)
    # What wrote into shared data is found out after the first trial.
    expected = [] if once else ["prepare", "fit"] * 3
    assert expected == CALLS


def test_one_value_of_one_tensor_is_other_data():
    run = evaluate(Shifted)
    for shift, expected in ((0.1, ["prepare", "fit"]), (0.1, []), (0.1000001, ["prepare", "fit"])):
        CALLS.clear()
        config = {"data.init_args.shift": shift}
        run(Trial(InitSpec("keep"), config, 3, STEPS, gated=False), go_on)
        assert expected == CALLS


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`:UserWarning")
def test_a_module_that_brings_its_data_is_a_plain_fit():
    run = evaluate(None, f"{__name__}.Brings", monitor="train_loss_end")
    first, *others = (run(trial(seed), go_on).info["final_fingerprint"] for seed in (3, 4, 3))
    assert others == [others[0], first]
    assert others[0] != first


def test_what_is_large_is_one_tensor_for_all_trials(monkeypatch):
    places = []
    original = Large.train_dataloader

    def noted(self) -> DataLoader:
        places.append(self.train.tensors[0].data_ptr())
        return original(self)

    monkeypatch.setattr(Large, "train_dataloader", noted)
    run = evaluate(Large)
    for strategy in ("keep", "normal", "orthogonal"):
        run(trial(strategy=strategy), go_on)
    assert len(places) >= 3
    assert len(set(places)) == 1


def test_the_look_prepares_the_data_and_no_trial_does_it_again():
    run = evaluate(Plain)
    CALLS.clear()
    seen = look(Job(run.config))
    assert CALLS == ["prepare", "fit"]
    CALLS.clear()
    again = evaluate(Plain, ready=seen.ready)
    found = again(trial(strategy="keep"), go_on)
    assert CALLS == ["fit"]
    assert found.info["final_fingerprint"] == alone(Plain, 3)


@pytest.mark.parametrize("data", [DrawsWhilePreparing, TearsDown])
def test_preparing_that_is_more_than_files_is_done_in_each_trial(data):
    assert look(Job(evaluate(data).config)).ready == ()


def test_a_slow_setup_is_paid_once(monkeypatch):
    slept = []
    original = Plain.setup

    def slow(self, stage: str) -> None:
        slept.append(0.05)
        time.sleep(slept[-1])
        original(self, stage)

    monkeypatch.setattr(Plain, "setup", slow)
    run = evaluate(Plain)
    for _ in range(4):
        run(trial(), go_on)
    assert len(slept) == 1
