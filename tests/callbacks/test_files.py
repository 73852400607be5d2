"""What a run leaves on disk and in its loggers."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_init import HealthMonitor, InitCallback, InitSpec, make_plan
from lightning_init.strategies.apply import fingerprint
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, mlp

LAYERS = ["net.0", "net.2", "net.4"]


def run(strategy: Any = "orthogonal", **arguments: Any) -> tuple[InitCallback, AtStart]:
    callback, start = InitCallback(strategy, seed=3, save_init="kept/init.safetensors"), AtStart()
    nets.fit(Digits(mlp()), callback, start, **{"max_steps": 4, **arguments})
    return callback, start


def restored(start: AtStart) -> Digits:
    module = Digits(mlp())
    module.load_state_dict(start.weights)
    return module


def everything() -> list[str]:
    return sorted(str(p) for p in Path().rglob("*") if p.is_file())


@pytest.mark.case(42)
def test_nothing_is_written_into_the_working_folder_without_a_logger() -> None:
    run()
    assert everything() == ["kept/init.safetensors"]


def test_a_folder_that_the_user_chose_gets_both_files() -> None:
    callback, start = run(default_root_dir="chosen")
    assert everything() == ["chosen/health.json", "chosen/init.json", "kept/init.safetensors"]
    assert callback.fingerprint == fingerprint(restored(start))


@pytest.mark.case(42)
@pytest.mark.parametrize("arguments", [{"fast_dev_run": 2}, {"barebones": True}])
@pytest.mark.filterwarnings("ignore:.*self.log.*barebones:UserWarning")  # lightning
def test_smoke_runs_are_initialized_and_write_nothing(arguments: dict[str, Any]) -> None:
    drop = {"logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"}
    if "barebones" in arguments:
        arguments = {**arguments, **dict.fromkeys(drop), "max_steps": 2}
    callback, start = InitCallback("orthogonal", seed=3), AtStart()
    nets.fit(Digits(mlp()), callback, start, **arguments)
    assert everything() == []
    assert nets.same(start.weights, run()[1].weights)
    assert callback.report is not None


def test_init_json_tells_what_was_drawn() -> None:
    spec = InitSpec("orthogonal", {"gain": 1.5}, {"net.4.*": "normal"})
    callback = InitCallback(spec, seed=3)
    nets.fit(Digits(mlp()), callback, start := AtStart(), default_root_dir="chosen")
    data = json.loads(Path("chosen/init.json").read_text())
    assert data["fingerprint"] == callback.fingerprint == fingerprint(restored(start))
    assert InitSpec.from_dict(data["spec"]) == InitSpec(
        "orthogonal", {"gain": 1.5}, {"net.4.*": "normal"}, 3
    )
    assert (data["seed"], data["seed_source"]) == (3, "given")
    module = Digits(mlp())
    plan = make_plan(module, spec, forward=lambda: module.loss(next(iter(nets.ordered()))))
    assert data["plan"]["entries"] == plan.to_dict()["entries"]


def test_health_json_tells_what_was_measured() -> None:
    callback, start = run(default_root_dir="chosen", max_steps=12)
    data = json.loads(Path("chosen/health.json").read_text())
    assert callback.report is not None
    assert data == callback.report.to_dict()
    assert [step["step"] for step in data["steps"]] == [0, 1, 2, 5, 10]
    assert [row["name"] for row in data["steps"][0]["layers"]] == LAYERS
    assert len(data["loss"]) == 12
    module, batch = restored(start), next(iter(nets.ordered()))
    out = module.net[0](batch[0]).detach()
    first = data["steps"][0]["layers"][0]
    assert first["std"] == pytest.approx(float(out.std(correction=0)), rel=1e-5)
    loss = module.loss(batch)
    assert data["loss"]["0"] == pytest.approx(float(loss.detach()), rel=1e-6)
    (grad,) = torch.autograd.grad(loss, module.net[2].weight)
    read = {row["name"]: row for row in data["steps"][0]["weights"]}["net.2.weight"]
    assert read["grad_rms"] == pytest.approx(float((grad**2).mean().sqrt()), rel=1e-5)
    assert read["std"] == pytest.approx(
        float(start.weights["net.2.weight"].std(correction=0)), rel=1e-5
    )


def test_saved_weights_are_those_that_training_starts_from() -> None:
    callback, start = run("xavier_normal")
    assert nets.same(
        dict(sorted(load_file("kept/init.safetensors").items())),
        dict(sorted(start.weights.items())),
    )
    with safe_open("kept/init.safetensors", "pt") as file:
        assert file.metadata() == {"fingerprint": callback.fingerprint}


@pytest.mark.case(42)
def test_early_steps_reach_a_csv_logger() -> None:
    run(logger=CSVLogger("logs", name="run"), log_every_n_steps=50, max_steps=4)
    with Path("logs/run/version_0/metrics.csv").open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert sorted(rows) == [0, 1, 2]
    data = json.loads(Path("logs/run/version_0/health.json").read_text())
    assert Path("logs/run/version_0/init.json").exists()
    for step in data["steps"]:
        row = rows[step["step"]]
        for layer in step["layers"]:
            logged = float(row[f"lightning_init/output_std/{layer['name']}"])
            assert logged == pytest.approx(layer["std"], rel=1e-6)
        for weight in step["weights"]:
            logged = float(row[f"lightning_init/weight_grad/{weight['name']}"])
            assert logged == pytest.approx(weight["grad_rms"], rel=1e-6)


def test_scalars_and_histograms_reach_tensorboard() -> None:
    logger = TensorBoardLogger("logs", name="run")
    start = AtStart()
    nets.fit(Digits(mlp()), InitCallback("orthogonal", seed=3), start, logger=logger, max_steps=4)
    events = EventAccumulator("logs/run/version_0", {"histograms": 0, "scalars": 0})
    events.Reload()
    data = json.loads(Path("logs/run/version_0/health.json").read_text())
    tags = events.Tags()
    for index, name in enumerate(LAYERS):
        logged = events.Scalars(f"lightning_init/output_std/{name}")
        assert [event.step for event in logged] == [0, 1, 2]
        stds = [step["layers"][index]["std"] for step in data["steps"]]
        assert [event.value for event in logged] == pytest.approx(stds, rel=1e-6)
        assert f"lightning_init/output_grad/{name}" in tags["scalars"]
        assert f"weights/{name}.weight" in tags["histograms"]
        assert [e.step for e in events.Histograms(f"weights/{name}.weight")] == [0, 1, 2]
        assert [e.step for e in events.Histograms(f"outputs/{name}")] == [1, 2]
        first = events.Histograms(f"weights/{name}.weight")[0].histogram_value
        weight = start.weights[f"{name}.weight"]
        assert first.num == weight.numel()
        assert first.sum == pytest.approx(float(weight.sum()), rel=1e-4, abs=1e-4)
        assert first.max == pytest.approx(float(weight.max()), rel=1e-6)


@pytest.mark.case(42)
def test_several_loggers_get_the_same() -> None:
    loggers = [CSVLogger("a", name="x"), CSVLogger("b", name="x")]
    nets.fit(Digits(mlp()), HealthMonitor(), logger=loggers, max_steps=2, log_every_n_steps=1)
    texts = [Path(f"{x}/x/version_0/metrics.csv").read_text() for x in "ab"]
    assert texts[0] == texts[1]
    assert "lightning_init/output_std/net.2" in texts[0]


def test_values_that_are_no_numbers_are_not_logged() -> None:
    module = Digits(mlp())
    module.net[2].weight.data[0, 0] = math.nan
    callback = InitCallback("keep", verbose=False)
    nets.fit(module, callback, logger=TensorBoardLogger("logs", name="run"), max_steps=2)
    events = EventAccumulator("logs/run/version_0")
    events.Reload()
    assert "lightning_init/output_std/net.0" in events.Tags()["scalars"]
    assert "lightning_init/output_std/net.2" not in events.Tags()["scalars"]


def test_a_folder_that_cannot_be_written_ends_no_training() -> None:
    Path("taken").write_text("a file")
    trained = Digits(mlp())
    with pytest.warns(UserWarning, match=r"json was not written .*the training goes on"):
        trainer = nets.fit(trained, InitCallback(seed=3), max_steps=4, default_root_dir="taken")
    assert trainer.global_step == 4
    assert everything() == ["taken"]
