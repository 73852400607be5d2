"""Two processes start from the same weights as one, seeded or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException

from lightning_init import InitCallback, InitSpec, add_branch_scales_
from lightning_init.callbacks.actions import UnhealthyError
from lightning_init.strategies.distributions import Normal
from lightning_init.strategies.registry import entries
from tests.callbacks import nets
from tests.callbacks.nets import BuiltInConfigureModel, Digits, Stream, noisy
from tests.callbacks.together import together


class Dump(pl.Callback):
    """Each process writes the weights that its first batch meets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 0:
            torch.save(nets.weights(pl_module), self.folder / f"{trainer.global_rank}.pt")


def post_norm() -> nn.Sequential:
    """The rows of a digit as tokens, with the branch scales that `admin` sets."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    rows = nn.Unflatten(1, (8, 8))
    model = nn.Sequential(rows, layer, nn.Flatten(), nn.Linear(64, 10))
    add_branch_scales_(model, "admin", forward=lambda: model(torch.ones(2, 64)))
    return model


LOOKING: list[tuple[InitSpec, Callable[[], nn.Module]]] = [
    (InitSpec("gradinit", {"steps": 4}, seed=3), noisy),
    (InitSpec("metainit", {"steps": 4}, seed=3), noisy),
    (InitSpec("channel_norm", seed=3), noisy),
    (InitSpec("admin", seed=3), post_norm),
]  # every scheme that looks at data, but for lsuv


def normal(info: Any) -> Normal:
    return Normal(0.1, reason="a function of the user's")


class Split(Stream):
    """Each process meets samples of its own."""

    def __iter__(self) -> Any:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        yield from list(nets.digits())[rank * 500 :]


class Louder(torch.utils.data.Dataset[Any]):
    """The second process meets a hundred times larger samples."""

    def __len__(self) -> int:
        return len(nets.digits())

    def __getitem__(self, index: int) -> Any:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        x, y = nets.digits()[index]
        return x * (1 + 99 * rank), y


def dumped(folder: Path, module: Digits, callback: InitCallback, **given: Any) -> None:
    folder.mkdir(exist_ok=True)
    given = {"strategy": "ddp", "devices": 2, "max_steps": 2, **given}
    nets.fit(module, callback, Dump(folder), default_root_dir=folder, **given)


def weights_of(folder: Path) -> list[Any]:
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def drawn(folder: Path) -> None:
    """Seeded, not seeded, on other samples, learned; with weights averaged beside."""
    dumped(folder / "seeded", Digits(noisy()), InitCallback("lsuv", seed=3))
    torch.seed()  # another one in each process
    dumped(folder / "unseeded", BuiltInConfigureModel(), InitCallback("orthogonal"))
    stream = torch.utils.data.DataLoader(Split(), 32)
    dumped(folder / "stream", Digits(noisy()), InitCallback("lsuv", seed=3), loader=stream)
    louder = torch.utils.data.DataLoader(Louder(), 32)
    dumped(folder / "louder", Digits(noisy()), InitCallback("lsuv", seed=3), loader=louder)
    for spec, make in LOOKING:
        dumped(folder / spec.strategy, Digits(make()), InitCallback(spec))


def test_every_scheme_that_looks_at_data_is_here() -> None:
    known = {spec.strategy for spec, _ in LOOKING} | {"lsuv", "chain"}
    looks = set()
    for entry in entries():
        try:
            strategy = InitSpec(entry.name).build()
        except ValueError:  # without an argument it cannot be built
            continue
        looks |= {entry.name} if strategy.calibrate_ is not None else set()
    assert looks <= known


@pytest.mark.slow
@pytest.mark.case(18, 21, 54)
def test_all_processes_start_from_the_weights_of_one(tmp_path: Path, ran: Any) -> None:
    together(tmp_path, drawn)
    folder = tmp_path / "drawn"
    one = nets.AtStart()
    nets.fit(Digits(noisy()), InitCallback("lsuv", seed=3), one, max_steps=1)
    for weights in weights_of(folder / "seeded"):
        assert nets.same(weights, one.weights)
    data = json.loads((folder / "seeded/init.json").read_text())
    assert data["seed"] == 3
    assert json.loads((folder / "seeded/health.json").read_text())["findings"] == []

    first, second = weights_of(folder / "unseeded")
    assert nets.same(first, second)
    seed = json.loads((folder / "unseeded/init.json").read_text())["seed"]
    start = nets.AtStart()
    again = InitCallback("orthogonal", seed=seed)
    nets.fit(BuiltInConfigureModel(), again, start, max_steps=1)
    assert nets.same(first, start.weights)

    for name in ("stream", "louder"):
        first, second = weights_of(folder / name)
        assert nets.same(first, second)
        found = json.loads((folder / name / "health.json").read_text())["findings"]
        # Each process knows what the first one has scaled.
        assert "scheme_audit" not in [finding["detector"] for finding in found]

    for spec, make in LOOKING:
        nets.fit(Digits(make()), InitCallback(spec), one := nets.AtStart(), max_steps=1)
        for weights in weights_of(folder / spec.strategy):
            assert nets.same(weights, one.weights), spec.strategy
    ran("ddp")


def once_more(start: Any) -> None:
    """Again if a process was aborted as it ended, while gloo's threads still ran."""
    try:
        start()
    except ProcessExitedException as error:
        if error.signal_name != "SIGABRT":
            raise
        start()


@pytest.mark.slow
@pytest.mark.case(19, 20)
@pytest.mark.filterwarnings("default")  # what launchers warn of is not ours
@pytest.mark.parametrize("launcher", ["ddp_spawn", "ddp_fork"])
def test_a_launcher_within_the_process(tmp_path: Path, launcher: str, ran: Any) -> None:
    strategy = normal if launcher == "ddp_spawn" else lambda info: normal(info)
    callback = InitCallback(strategy, seed=3)
    once_more(lambda: dumped(tmp_path / "run", Digits(nets.mlp()), callback, strategy=launcher))
    one = nets.AtStart()
    nets.fit(Digits(nets.mlp()), InitCallback(normal, seed=3), one, max_steps=1)
    for weights in weights_of(tmp_path / "run"):
        assert nets.same(weights, one.weights)
    health = json.loads((tmp_path / "run/health.json").read_text())
    assert health["steps"]  # the report outlives the processes
    ran(launcher)


@pytest.mark.case(20)
def test_a_strategy_that_cannot_be_pickled_is_said(tmp_path: Path) -> None:
    callback = InitCallback(lambda info: normal(info), seed=3)
    with pytest.raises(
        Exception, match=r"InitCallback\.\w+ is <lambda>, .* at the top of a module"
    ):
        dumped(tmp_path / "run", Digits(noisy()), callback, strategy="ddp_spawn")


SCRIPT = """
import sys
from pathlib import Path
from lightning_init import InitCallback
from tests.callbacks import nets
from tests.callbacks.test_processes import Dump
folder = Path(sys.argv[1])
callback = InitCallback("orthogonal")
nets.fit(nets.Digits(nets.noisy()), callback, Dump(folder), strategy="ddp", devices=2,
         max_steps=2, default_root_dir=folder)
print("report", callback.report is not None)
"""


@pytest.mark.slow
@pytest.mark.case(18)
def test_a_script_that_starts_itself_again(tmp_path: Path, ran: Any) -> None:
    """The processes of strategy="ddp" draw different random numbers if nobody seeds them."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "run").mkdir()
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "script.py", str(tmp_path / "run")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = weights_of(tmp_path / "run")
    assert nets.same(first, second)
    seed = json.loads((tmp_path / "run/init.json").read_text())["seed"]
    one = nets.AtStart()
    nets.fit(Digits(noisy()), InitCallback("orthogonal", seed=seed), one, max_steps=1)
    assert nets.same(first, one.weights)
    assert "report True" in done.stdout  # the script itself is the first process
    ran("ddp")


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


def told(folder: Path, module: Digits, callback: InitCallback, **arguments: Any) -> None:
    folder.mkdir(exist_ok=True)
    given = {"default_root_dir": folder, "strategy": "ddp", "devices": 2, **arguments}
    nets.fit(module, Tell(folder, callback), callback, Dump(folder), **given)


def what(folder: Path) -> list[Any]:
    return [json.loads((folder / f"tell{rank}.json").read_text()) for rank in (0, 1)]


RUNGS = ("orthogonal", "lsuv")


def sick(folder: Path) -> None:
    """What one process finds; what both do about it."""
    actions: tuple[Any, ...] = ("warn", "stop")
    for action in actions:
        callback = InitCallback("orthogonal", seed=3, on_unhealthy=action)
        told(folder / action, OneIsSick(3), callback, max_steps=12)
    callback = InitCallback("orthogonal", seed=3, on_unhealthy="raise")
    with pytest.raises(UnhealthyError, match="unhealthy: ERROR non_finite"):
        told(folder / "raise", OneIsSick(3), callback, max_steps=12)
    for rung in RUNGS:
        callback = InitCallback(
            InitSpec("normal", {"std": 0.001}), seed=3, on_unhealthy="rescue", ladder=[rung]
        )
        stream = torch.utils.data.DataLoader(Split(), 32)
        told(folder / rung, Digits(nets.sick(12)), callback, max_steps=2, loader=stream)


@pytest.mark.slow
def test_what_one_process_finds_all_act_on(tmp_path: Path) -> None:
    together(tmp_path, sick)
    folder = tmp_path / "sick"
    for action in ("warn", "stop"):
        one, two = what(folder / action)
        assert one == two
        assert one["findings"][0]["detector"] == "non_finite"
        assert one["step"] == 12 if action == "warn" else one["step"] < 10
        data = json.loads((folder / action / "health.json").read_text())
        found = [finding["detector"] for finding in data["findings"]]
        assert found == [finding["detector"] for finding in one["findings"]]
    assert json.loads((folder / "raise/health.json").read_text())["findings"]
    for rung in RUNGS:
        one, two = what(folder / rung)
        assert one == two
        assert one["attempts"][-1] == f"{rung}: healthy (kept)"
        first, second = weights_of(folder / rung)
        assert nets.same(first, second)
    start = nets.AtStart()
    nets.fit(Digits(nets.sick(12)), InitCallback("orthogonal", seed=3), start)
    assert nets.same(weights_of(folder / "orthogonal")[0], start.weights)
