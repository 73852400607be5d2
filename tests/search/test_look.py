"""One batch tells what is logged, what the model is, and what a short run does to the schedule."""

import random

import pytest
import torch
import yaml
from jsonargparse import Namespace
from torch.utils.data import DataLoader, IterableDataset

from lightning_init.search.job import ConfigError, Job
from lightning_init.search.look import look
from lightning_init.search.settings import settings_for
from tests.search.models import Data, Net

OneCycle = torch.optim.lr_scheduler.OneCycleLR


class Scheduled(Net):
    """With a schedule whose length is known in one of several ways."""

    def __init__(self, length: str = "estimated_stepping_batches") -> None:
        super().__init__()
        self.length = length

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        steps = int(self.length) if self.length.isdigit() else getattr(self.trainer, self.length)
        schedule = OneCycle(optimizer, 0.1, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Stream(IterableDataset):
    def __iter__(self):
        yield from Data().rows()


class Streamed(Data):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(Stream(), batch_size=8)


@pytest.fixture
def job(tmp_path):
    def make(model: str = "Net", data: str = "Data", length: str | None = None, **trainer) -> Job:
        where = f"{'tests.search.models' if model == 'Net' else __name__}.{model}"
        init = {} if length is None else {"init_args": {"length": length}}
        place = f"{'tests.search.models' if data == 'Data' else __name__}.{data}"
        path = tmp_path / "config.yaml"
        config = {"model": {"class_path": where, **init}, "data": {"class_path": place}}
        path.write_text(yaml.safe_dump({**config, "trainer": {"accelerator": "cpu", **trainer}}))
        return Job(["--config", str(path)])

    return make


def test_it_sees_metrics_and_a_traced_model(job):
    found = look(job(max_steps=40))
    assert found.metrics == ("val_loss",)
    assert found.architecture.traced
    assert [info.name for info in found.architecture][:2] == ["net.0.weight", "net.0.bias"]
    assert (found.schedule, found.schedulers, found.job_steps) == ("", (), 40)
    assert found.sentence(40) == "40 steps, as many as your job's"
    assert found.sentence(20) == "20 steps (of your 40), no learning-rate schedule"


@pytest.mark.parametrize(
    ("length", "schedule", "said"),
    [
        ("estimated_stepping_batches", "compressed", "compressed to them"),
        ("max_steps", "compressed", "compressed to them"),
        ("max_epochs", "cut", "cut there"),
        ("30", "cut", "cut there"),
    ],
)
def test_a_schedule_is_compressed_where_the_trainer_is_asked_for_the_steps(
    job, length, schedule, said
):
    found = look(job("Scheduled", length=length, max_steps=30, max_epochs=9))
    assert (found.schedule, found.schedulers) == (schedule, ("OneCycleLR",))
    assert found.sentence(10) == f"10 steps (of your 30), your schedule (OneCycleLR) {said}"


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        ({"max_epochs": 3}, 24),  # 64 rows in batches of 8
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 9),
        ({"max_epochs": 3, "limit_train_batches": 5, "max_steps": 100}, 15),
        ({"max_epochs": -1}, None),
        ({}, 8000),  # Lightning's own limit of 1000 epochs
    ],
)
def test_how_long_the_job_itself_is(job, trainer, steps):
    assert look(job(**trainer)).job_steps == steps


def test_a_stream_has_no_known_end(job):
    found = look(job(data="Streamed", max_epochs=2))
    assert found.job_steps is None
    assert found.sentence(7).startswith("7 steps, ")


def test_random_states_and_files_are_left_as_they_are(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = job(max_steps=3)
    files = sorted(tmp_path.rglob("*"))
    before = torch.get_rng_state(), random.getstate()
    look(made)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert sorted(tmp_path.rglob("*")) == files


def test_without_data_it_says_so(tmp_path):
    with pytest.raises(ConfigError, match="no training data"):
        look(Job(["--model", "tests.search.models.Net"]))


def test_it_stops_after_one_batch(job, monkeypatch):
    seen = []
    monkeypatch.setattr(
        Net, "training_step", lambda self, batch: seen.append(1) or self.loss(batch)
    )
    look(job(max_steps=40, min_epochs=3, max_epochs=5))
    assert len(seen) <= 3, "one batch, and analysis"


def test_without_validation_there_are_no_metrics_of_it(job):
    assert look(job(limit_val_batches=0)).metrics == ()


class Manual(Net):
    """Optimizes by hand and returns nothing, as a GAN does."""

    def __init__(self, log: str = "val_score") -> None:
        super().__init__(log=log)
        self.automatic_optimization = False

    def training_step(self, batch) -> None:
        self.optimizers().zero_grad()
        self.manual_backward(self.loss(batch))
        self.optimizers().step()


class Slash(Net):
    def __init__(self) -> None:
        super().__init__(log="val/loss")


def test_without_a_training_loss_the_user_has_to_name_what_to_judge_by(job):
    assert look(job()).loss
    assert not look(job("Manual")).loss
    with pytest.raises(ConfigError, match=r"returns no loss .* name one of .*: val_score$"):
        settings_for(job("Manual"), Namespace(), "x")
    given = settings_for(job("Manual"), Namespace(monitor="val_score", workers=0), "x")
    assert given.objectives[0].monitor == "val_score"


def test_a_validation_loss_is_known_by_its_usual_names(job):
    assert settings_for(job("Slash"), Namespace(workers=0), "x").objectives[0].monitor == "val/loss"
