"""The search on a real GPU, as a user meets it. Skipped where there is none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from examples.digits import Digits, DigitsMLP
from lightning_init import InitCallback, InitTuner, Space, Workers, search_init
from lightning_init.search.trial import Outcome, Trial
from lightning_init.strategies.apply import fingerprint
from tests.cli.test_end_to_end import (
    CONFIG,
    ROOT,
    alive,
    complete,
    finish,
    fit,
    started,
    stored,
    wait_until,
)

ON = "gpu"
CLI = (sys.executable, "-m", "lightning_init.cli.main")
HERE = ("--config", CONFIG, f"--trainer.accelerator={ON}")
SEARCH = ("search", *HERE, "--steps=60", "--confirm-steps=60", "--strategies=orthogonal")
SIZES = ((50, (512, 64)), (10, (512,)))
ONE = {"CUDA_VISIBLE_DEVICES": "0"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),  # Lightning and CUDA give hints of their own
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that was killed half-way and went on."""
    place = tmp_path_factory.mktemp("search")
    command = (*CLI, *SEARCH, "--trials=5", "--confirm-seeds=3", f"--out={place / 'run'}")
    with started(*command, **ONE) as process:
        wait_until(lambda: len(complete(place / "run", place)) >= 2 or process.poll() is not None)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        wait_until(lambda: not alive(process.pid))  # nothing holds the GPU
    before = complete(place / "run", place)
    finish(*command, **ONE)
    after = complete(place / "run", place)
    assert {number: after[number] for number in before} == before
    assert len(after) == 5
    return place / "run"


@pytest.fixture(scope="module")
def winner(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())["winner"]


@pytest.mark.parametrize("index", [0, 2])
def test_fit_with_the_overlay_is_the_confirmation_run(folder, winner, tmp_path, index):
    run = winner["runs"][index]
    seed = [] if index == 0 else [f"--seed_everything={run['seed']}"]
    init, final = fit(folder, tmp_path, run["threads"], f"--trainer.accelerator={ON}", *seed)
    assert init == run["init_fingerprint"]
    assert final == run["final_fingerprint"]


def test_the_init_on_the_cpu_is_that_of_the_gpu(folder, winner, tmp_path):
    init, _ = fit(folder, tmp_path, 1, steps=1)
    assert init == winner["runs"][0]["init_fingerprint"]


def test_two_workers_share_it(tmp_path):
    out = tmp_path / "run"
    options = ("--trials=5", "--confirm-seeds=2", "--workers=2", f"--out={out}")
    finish(*CLI, *SEARCH, *options, **ONE)
    assert len(complete(out, tmp_path)) == 5
    runs = json.loads((out / "results.json").read_text())["winner"]["runs"]
    assert len({run["final_fingerprint"] for run in runs}) == 2


def test_audit_and_plan_there():
    command = [*CLI, "audit", *HERE]
    audited = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert audited.returncode == 1, audited.stderr
    assert "ERROR backward_growth" in audited.stdout
    assert "orthogonal" in finish(*CLI, "plan", *HERE, "--strategy=orthogonal")


def test_the_tuner_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(max_steps=40, accelerator=ON, devices=1, **quiet)
    model = DigitsMLP(depth=12)
    before = fingerprint(model)
    found = InitTuner(trainer).find(
        model, Digits(), space=Space(("orthogonal",)), trials=3, confirm_seeds=2, seed=4
    )
    assert fingerprint(model) == before
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    found.apply()
    assert fingerprint(model) != before
    start = fingerprint(model)
    trainer.fit(model, datamodule=Digits())
    assert trainer.global_step == 40
    assert fingerprint(model.cpu()) != start


class Words(pl.LightningModule):
    """Attention over embeddings, whose gradients a GPU adds up in any order unless told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 64)
        self.body = nn.TransformerEncoderLayer(64, 4, 128, 0.1, batch_first=True, norm_first=True)
        self.head = nn.Linear(64, 10)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.head(self.body(self.table(batch[0])).mean(1)), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


def test_a_deterministic_training_repeats_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(top, size, generator=generator) for top, size in SIZES)
    found = set()
    for _ in range(2):
        pl.seed_everything(1, verbose=False)
        module = Words()
        trainer = pl.Trainer(
            accelerator=ON,
            devices=1,
            max_steps=30,
            deterministic=True,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[InitCallback("orthogonal", verbose=False)],
        )
        try:
            trainer.fit(module, DataLoader(TensorDataset(x, y), 128, shuffle=True))
        finally:
            torch.use_deterministic_algorithms(False)
        found.add(fingerprint(module.cpu()))
    assert len(found) == 1


def hungry(trial: Trial, report: object) -> Outcome:
    """`zeros` asks for more memory than there is left, any other for a little."""
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(2 * free if trial.spec.strategy == "zeros" else 2**20, device="cuda")
    return Outcome(float(held[:1].zero_()) + trial.seed)


def large(trial: Trial, report: object) -> Outcome:
    """Two of these do not fit."""
    _, total = torch.cuda.mem_get_info()
    held = torch.empty(int(0.6 * total), dtype=torch.uint8, device="cuda")
    time.sleep(1)
    return Outcome(float(held[:1].zero_()) + trial.seed)


@pytest.mark.parametrize(
    ("evaluate", "workers"), [(hungry, 0), (hungry, 2), (large, 2)], ids=["0", "2", "crowded"]
)
def test_a_trial_without_enough_memory_costs_itself_only(tmp_path, evaluate, workers):
    """It is tried once more and is then a crash; the others go on, on the same device."""
    result = search_init(
        evaluate,
        Space(("zeros", "orthogonal")),
        trials=6,
        confirm_seeds=2,
        workers=Workers(workers, ["0"] if workers else None),
        log=tmp_path / "log.txt",
        storage=tmp_path / "study.journal",
    )
    assert "OutOfMemoryError" in (tmp_path / "log.txt").read_text()
    trials = stored(tmp_path, tmp_path)
    crashed = [t for t in trials if t.user_attrs.get("reason", "").startswith("crashed")]
    assert {t.user_attrs["reason"].split()[1] for t in crashed} == {"OutOfMemoryError:"}
    again = [t for t in trials if "retry_of" in t.user_attrs]
    first = {t.number for t in crashed if "retry_of" not in t.user_attrs}
    assert {t.user_attrs["retry_of"] for t in again} == first
    assert complete(tmp_path, tmp_path)
    if evaluate is hungry:
        assert len(crashed) == 2 * len(first) > 0
        assert result.best.spec.strategy != "zeros"
