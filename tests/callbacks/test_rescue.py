"""Rescue: initialized anew until the audit is healthy; after the first step a command instead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from torch import nn

from lightning_init import HealthMonitor, InitCallback, InitSpec
from lightning_init.architecture.provenance import record_of
from lightning_init.callbacks.actions import UnhealthyError, UnhealthyWarning
from lightning_init.strategies.apply import fingerprint
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, Stream, mlp, sick

TINY = InitSpec("normal", {"std": 0.001})
TINIER = InitSpec("normal", {"std": 0.0005})
HUGE = InitSpec("normal", {"std": 5.0})


class Optimizes(pl.Callback):
    """What the optimizer holds, and whether it ever stepped."""

    def __init__(self) -> None:
        self.steps, self.same = 0, True

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.same = self.same and held == {id(p) for p in pl_module.parameters()}
        self.steps += 1


def rescued(
    module: Any, strategy: Any = TINY, *others: pl.Callback, ladder: Any = None, **arguments: Any
) -> tuple[InitCallback, AtStart]:
    given = {key: arguments.pop(key) for key in ("save_init", "scope") if key in arguments}
    callback = InitCallback(
        strategy, seed=None if isinstance(strategy, InitSpec) and strategy.seed else 3,
        on_unhealthy="rescue", ladder=ladder, **given,
    )  # fmt: skip
    nets.fit(module, callback, start := AtStart(), *others, **{"max_steps": 3, **arguments})
    return callback, start


def names(callback: InitCallback) -> list[str]:
    assert callback.report is not None
    return [str(attempt) for attempt in callback.report.attempts]


def test_the_first_rung_that_is_healthy_is_as_if_it_had_been_asked_for() -> None:
    optimizes = Optimizes()
    callback, start = rescued(
        Digits(sick(12)), TINY, optimizes, ladder=[HUGE, "orthogonal", "xavier_normal"]
    )
    said = names(callback)
    assert [text.partition(":")[0] for text in said] == [
        "normal(std=0.001)",
        "normal(std=5)",
        "orthogonal",
    ]
    assert said[2] == "orthogonal: healthy (kept)"
    assert callback.report is not None
    assert callback.report.errors == ()
    assert callback.report.attempts[0].errors >= 1
    plain = InitCallback("orthogonal", seed=3)
    nets.fit(Digits(sick(12)), plain, asked := AtStart(), max_steps=3)
    assert nets.same(start.weights, asked.weights)
    assert callback.fingerprint == plain.fingerprint
    assert callback.plan is not None
    assert plain.plan is not None
    assert callback.plan.to_dict()["entries"] == plain.plan.to_dict()["entries"]
    assert (optimizes.steps, optimizes.same) == (3, True)


def test_files_and_records_are_those_of_the_attempt_that_was_kept() -> None:
    module = Digits(sick(12))
    callback, start = rescued(
        module, ladder=["orthogonal"], default_root_dir="chosen", save_init="init.safetensors",
        max_steps=1,
    )  # fmt: skip
    data = json.loads(Path("chosen/init.json").read_text())
    assert data["spec"] == {"strategy": "orthogonal"}
    assert data["fingerprint"] == callback.fingerprint
    again = Digits(sick(12))
    again.load_state_dict(start.weights)
    assert fingerprint(again) == callback.fingerprint
    kept = load_file("init.safetensors")
    assert all(torch.equal(kept[key], value) for key, value in start.weights.items())
    health = json.loads(Path("chosen/health.json").read_text())
    rows = [(row["name"], row["kept"], bool(row["findings"])) for row in health["attempts"]]
    assert rows == [("normal(std=0.001)", False, True), ("orthogonal", True, False)]
    record = record_of(module)
    assert all(record.written[name] for name in start.weights)


def test_the_table_is_headed_by_the_attempt_that_was_kept(said: list[str]) -> None:
    rescued(Digits(sick(12)), TINY, ladder=["orthogonal"])
    (table,) = [text for text in said if "tensors drawn" in text]
    assert table.startswith("lightning_init: orthogonal, seed 3")


def test_a_healthy_model_is_left_alone() -> None:
    callback, start = rescued(Digits(mlp()), "kaiming_normal")
    assert callback.report is not None
    assert callback.report.attempts == ()
    nets.fit(Digits(mlp()), InitCallback("kaiming_normal", seed=3), plain := AtStart())
    assert nets.same(start.weights, plain.weights)


def test_the_default_ladder_heals_a_default_that_vanishes() -> None:
    callback, _ = rescued(Digits(sick(12)))
    assert names(callback)[-1].endswith("healthy (kept)")
    assert names(callback)[1].startswith("auto:")


def test_weights_that_were_not_ours_are_never_touched() -> None:
    def model() -> Digits:
        net = sick(12)
        nets.seed_all(7)
        net[4].requires_grad_(False)  # frozen
        with torch.no_grad():
            net[6].weight.normal_(0, 0.3)  # the model's own
        net[8].weight._is_hf_initialized = net[8].bias._is_hf_initialized = True  # loaded
        return Digits(net)

    nets.seed_all(1)
    module = model()
    before = nets.weights(module)
    with pytest.raises(UnhealthyError):
        rescued(module, ladder=[HUGE, TINIER], max_steps=1)
    after = nets.weights(module)
    for name in ("net.4.weight", "net.4.bias", "net.8.weight", "net.8.bias"):
        assert torch.equal(before[name], after[name])
    assert not torch.equal(before["net.0.weight"], after["net.0.weight"])


def test_under_auto_what_the_model_made_itself_stays() -> None:
    net = sick(12)
    with torch.no_grad():
        net[6].weight.copy_(torch.eye(32) * 0.4)
    module = Digits(net)
    before = net[6].weight.clone()
    spec = InitSpec("auto", {"scale": 0.01})
    callback, start = rescued(module, spec, ladder=["orthogonal"])
    assert torch.equal(start.weights["net.6.weight"], before)
    assert names(callback)[0].startswith("auto(scale=0.01): ")
    assert not torch.equal(start.weights["net.8.weight"], before)


def test_a_rescue_that_may_draw_no_matrix_says_so() -> None:
    net = mlp()
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.normal_(0, 1)
    callback = InitCallback("auto", seed=3, on_unhealthy="rescue", ladder=["kaiming_normal"])
    with pytest.raises(UnhealthyError):
        nets.fit(Digits(net), callback)
    assert "no matrix is free to be drawn" in names(callback)[1]
    assert "InitCallback('kaiming_normal') draws what it made itself" in names(callback)[1]
    healed = InitCallback("kaiming_normal", seed=3, on_unhealthy="rescue")
    nets.fit(Digits(net), healed)
    assert healed.report is not None
    assert healed.report.errors == ()


def test_what_a_rung_keeps_is_as_it_was_built() -> None:
    net = nn.Sequential(nn.Embedding(17, 8), nn.Flatten(), *sick(8)[:])
    net[2] = nn.Linear(64 * 8, 32)

    class Tokens(Digits):
        def loss(self, batch: Any) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.net((batch[0] * 16).long()), batch[1])

    built = net[0].weight.clone()
    rung = InitSpec("orthogonal", overrides={"net.0.weight": "keep"})
    _, start = rescued(Tokens(net), ladder=[rung])
    assert torch.equal(start.weights["net.0.weight"], built)


def test_nothing_healthy_ends_before_any_step_with_the_best() -> None:
    module, optimizes = Digits(sick(40)), Optimizes()
    with pytest.raises(UnhealthyError) as caught:
        rescued(module, TINIER, optimizes, ladder=[TINY, "fixup", "torch_default"])
    assert optimizes.steps == 0
    attempts = caught.value.report.attempts
    assert [attempt.name for attempt in attempts] == [
        "normal(std=0.0005)",
        "normal(std=0.001)",
        "torch_default",
    ]
    (kept,) = [attempt for attempt in attempts if attempt.kept]
    assert kept.errors == min(attempt.errors for attempt in attempts)
    nets.fit(
        Digits(sick(40)),
        InitCallback(InitSpec.from_dict(dict(kept.spec)), seed=3, verbose=False),
        start := AtStart(),
        max_steps=1,
    )
    assert nets.same(nets.weights(module), start.weights)
    assert nets.hooks(module) == []


def test_at_most_max_rescues() -> None:
    for most in (0, 1):
        callback = InitCallback(
            TINY, on_unhealthy="rescue", ladder=[TINIER, "orthogonal"], max_rescues=most
        )
        with pytest.raises(UnhealthyError) as caught:
            nets.fit(Digits(sick(12)), callback)
        assert len(caught.value.report.attempts) == most + 1


def test_data_and_random_numbers_come_as_without_a_rescue() -> None:
    def run(strategy: Any, **more: Any) -> tuple[list[float], Any]:
        nets.seed_all(4)
        module = Digits(nn.Sequential(*sick(12)[:-1], nn.Dropout(0.2), nn.Linear(32, 10)))
        loader = torch.utils.data.DataLoader(nets.digits(), 32, shuffle=True)
        nets.fit(module, InitCallback(strategy, seed=3, **more), loader=loader, max_steps=4)
        return module.seen[-4:], nets.random_states()

    healed = run(TINY, on_unhealthy="rescue", ladder=["orthogonal"])
    assert nets.same(list(healed), list(run("orthogonal")))


def test_a_rung_that_looks_at_data() -> None:
    callback, start = rescued(Digits(sick(12)), ladder=["lsuv"], loader=None)
    assert names(callback)[-1] == "lsuv: healthy (kept)"
    nets.fit(Digits(sick(12)), InitCallback("lsuv", seed=3), plain := AtStart(), max_steps=1)
    assert nets.same(start.weights, plain.weights)


def test_an_average_of_the_weights_begins_with_the_new_ones() -> None:
    for first in (True, False):
        average = EMAWeightAveraging(decay=0.5, update_starting_at_step=100)
        callback = InitCallback(TINY, seed=3, on_unhealthy="rescue", ladder=["orthogonal"])
        both = (average, callback) if first else (callback, average)
        seen: list[Any] = []

        class Looks(pl.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
                inner = average._average_model.module  # noqa: B023
                seen.append(  # noqa: B023
                    nets.same(nets.weights(inner), nets.weights(pl_module))
                )

        nets.fit(Digits(sick(12)), *both, Looks(), max_steps=1)
        assert seen == [True]


def test_a_health_monitor_cannot() -> None:
    with pytest.raises(ValueError, match="use InitCallback"):
        HealthMonitor(on_unhealthy="rescue")
    for wrong in ("orthogonal", [3], {"a": 1}):
        with pytest.raises(ValueError, match="ladder"):
            InitCallback(on_unhealthy="rescue", ladder=wrong)
    with pytest.raises(ValueError, match="max_rescues >= 0"):
        InitCallback(max_rescues=-1)


class Explodes(Digits):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch) * (torch.nan if batch_idx == 5 else 1)


def test_after_the_first_step_it_stops_and_says_how_to_go_on(said: list[str]) -> None:
    callback = InitCallback(
        "orthogonal", seed=3, on_unhealthy="rescue", ladder=["orthogonal", "lecun_normal", "auto"]
    )
    with pytest.warns(UnhealthyWarning, match="non_finite"):
        trainer = nets.fit(
            Explodes(mlp()), callback, logger=CSVLogger("logs", name="run"), max_steps=40
        )
    assert 6 <= trainer.global_step <= 10
    (text,) = [text for text in said if "to start again" in text]
    line = text.splitlines()[-1].strip()
    again = eval(line)
    assert again.spec == InitSpec("lecun_normal", seed=3)
    data = yaml.safe_load(Path("logs/run/version_0/rescue.yaml").read_text())
    (one,) = data["trainer"]["callbacks+"]
    assert one["init_args"]["ladder"] == [{"strategy": "auto"}]
    nets.fit(Digits(mlp()), again)


def test_the_next_run_watches_as_this_one_did(said: list[str]) -> None:
    callback = InitCallback(
        "orthogonal", on_unhealthy="rescue", ladder=["lecun_normal"], monitor_steps=30,
        max_rescues=1, scope=["net.*"], detectors={"non_finite": {"patience": 3}, "dead_units": {}},
    )  # fmt: skip
    with pytest.warns(UnhealthyWarning, match="non_finite"):
        nets.fit(Explodes(mlp()), callback, logger=CSVLogger("logs", name="run"), max_steps=40)
    (one,) = yaml.safe_load(Path("logs/run/version_0/rescue.yaml").read_text())["trainer"][
        "callbacks+"
    ]
    given = one["init_args"]
    assert (given["monitor_steps"], given["max_rescues"]) == (30, 1)
    assert given["scope"] == ["net.*"]
    assert given["detectors"] == {"non_finite": {"patience": 3}, "dead_units": {}}
    assert "loss_steps" not in given  # which had its default


class TooFast(Digits):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e3)


def test_it_says_when_the_initialization_is_not_to_blame(said: list[str]) -> None:
    callback = InitCallback("kaiming_normal", seed=3, on_unhealthy="rescue")
    with pytest.warns(UnhealthyWarning) as caught:
        nets.fit(TooFast(mlp()), callback, max_steps=40)
    (text,) = [text for text in said if "to start again" in text]
    assert text.startswith(
        "lightning_init: the likeliest cause is learning rate, which no initialization mends; to "
    )
    (lines,) = (str(w.message).splitlines() for w in caught if w.category is UnhealthyWarning)
    assert lines[0].startswith("lightning_init: ERROR ")
    assert max(map(len, lines)) <= 80
    assert "    - learning rate:" in "\n".join(lines)


def test_without_a_folder_the_line_of_python_is_whole(said: list[str]) -> None:
    callback = InitCallback(
        "keep", on_unhealthy="rescue", ladder=[InitSpec("normal", {"std": 0.1})]
    )
    with pytest.warns(UnhealthyWarning, match="non_finite"):
        nets.fit(Explodes(mlp()), callback, max_steps=12)
    (text,) = [text for text in said if "to start again" in text]
    assert eval(text.splitlines()[-1].strip()).spec == InitSpec("normal", {"std": 0.1})


SCRIPT = """
import torch
from lightning.pytorch.cli import LightningCLI
from tests.callbacks.test_rescue import Explodes
from tests.callbacks.nets import mlp, ordered


class Model(Explodes):
    def __init__(self, fails: bool = True) -> None:
        super().__init__(mlp())
        self.fails = fails

    def training_step(self, batch, batch_idx):
        spec = [c for c in self.trainer.callbacks if type(c).__name__ == "InitCallback"][-1].spec
        print("starts with", spec) if batch_idx == 0 else None
        if str(spec) != "kaiming_normal":
            return super().training_step(batch, batch_idx)
        return self.loss(batch)

    def train_dataloader(self):
        return ordered()


LightningCLI(Model)
"""

CONFIG = """
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 12
  enable_progress_bar: false
  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: my logs}}
  callbacks:
    - class_path: lightning_init.InitCallback
      init_args: {strategy: orthogonal, on_unhealthy: rescue, ladder: [{strategy: lecun_normal}, kaiming_normal]}
"""


@pytest.mark.slow
def test_the_printed_command_works_until_it_is_healthy() -> None:
    Path("main.py").write_text(SCRIPT)
    Path("config.yaml").write_text(CONFIG)
    command = f"{sys.executable} -W ignore main.py fit --config config.yaml"
    found = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    started = []
    for _ in range(3):
        run = subprocess.run(
            command, shell=True, capture_output=True, text=True, timeout=120, check=False, env=found
        )
        text = run.stdout + run.stderr
        assert run.returncode == 0, text
        said = [line for line in text.splitlines() if line.startswith("starts with")]
        started += dict.fromkeys(said)
        lines = text.splitlines()
        where = [i for i, line in enumerate(lines) if "to start again" in line]
        if not where:
            break
        command = lines[where[-1] + 1].strip()
    assert started == [f"starts with {s}" for s in ("orthogonal", "lecun_normal", "kaiming_normal")]


def test_a_stream_is_not_read_for_a_rescue() -> None:
    stream = Stream()
    loader = torch.utils.data.DataLoader(stream, 32)
    callback = InitCallback(TINY, seed=3, on_unhealthy="rescue", ladder=["orthogonal"])
    nets.fit(Digits(sick(12)), callback, loader=loader, max_steps=2)
    plain = Stream()
    nets.fit(
        Digits(sick(12)), InitCallback("orthogonal", seed=3), max_steps=2,
        loader=torch.utils.data.DataLoader(plain, 32),
    )  # fmt: skip
    assert stream.taken == plain.taken
    assert names(callback)[-1] == "orthogonal: healthy (kept)"
