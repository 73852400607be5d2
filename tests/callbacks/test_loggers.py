"""What the Trainer's loggers get, each by its own interface."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from lightning_init import HealthMonitor, InitCallback
from lightning_init.callbacks.actions import UnhealthyWarning
from tests.callbacks import nets
from tests.callbacks.nets import Digits, mlp, sick


def tensorboard(module: Digits, callback: Any, **arguments: Any) -> EventAccumulator:
    logger = TensorBoardLogger("logs", name="run")
    nets.fit(module, callback, logger=logger, **{"max_steps": 6, **arguments})
    events = EventAccumulator("logs/run/version_0", {"histograms": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    return events


def text(event: Any) -> str:
    return event.tensor_proto.string_val[0].decode()


def test_tensorboard_has_curves_histograms_verdict_and_layout() -> None:
    callback = InitCallback("kaiming_normal", seed=3)
    events = tensorboard(Digits(mlp()), callback)
    assert callback.report is not None
    by_step = {step.step: step for step in callback.report.readings.steps}
    for step, event in zip(
        (1, 2, 5), events.Scalars("lightning_init/update/net.2.weight"), strict=True
    ):
        (read,) = [w for w in by_step[step].weights if w.name == "net.2.weight"]
        assert event.step == step
        assert event.value == pytest.approx(read.update, rel=1e-6)
    assert [e.step for e in events.Scalars("lightning_init/dead/net.0")] == [0, 1, 2, 5]
    for kind, steps in (
        ("outputs", [1, 2, 5]),
        ("gradients", [1, 2, 5]),
        ("weights", [0, 1, 2, 5]),
    ):
        tag = "net.2" if kind == "outputs" else "net.2.weight"
        assert [e.step for e in events.Histograms(f"{kind}/{tag}")] == steps
    verdicts = events.Tensors("lightning_init/verdict/text_summary")
    assert verdicts[0].step == 0
    assert text(verdicts[0]).startswith("    healthy: 3 layers read")
    (config,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    charts = {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in layout.category
    }
    assert list(charts) == [
        "lightning_init: outputs", "lightning_init: gradients", "lightning_init: updates"
    ]  # fmt: skip
    tags = events.Tags()["scalars"]
    for category in charts.values():
        for patterns in category.values():  # no chart is empty
            assert [tag for tag in tags if re.fullmatch(patterns[0], tag)]


def test_a_histogram_of_gradients_is_of_what_the_optimizer_gets() -> None:
    kept: dict[str, torch.Tensor] = {}

    class Keeps(Digits):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            kept["grad"] = self.net[2].weight.grad.clone()

    events = tensorboard(Keeps(mlp()), InitCallback("kaiming_normal", seed=3), max_steps=2)
    (event,) = events.Histograms("gradients/net.2.weight")
    assert event.histogram_value.max == pytest.approx(float(kept["grad"].max()), rel=1e-6)
    assert event.histogram_value.sum == pytest.approx(float(kept["grad"].sum()), rel=1e-3, abs=1e-5)


def test_the_verdict_names_the_finding_and_is_written_once() -> None:
    with pytest.warns(UnhealthyWarning):
        events = tensorboard(Digits(sick()), InitCallback("keep", seed=3))
    verdicts = events.Tensors("lightning_init/verdict/text_summary")
    texts = [text(event) for event in verdicts]
    assert "backward_growth" in texts[0]
    assert len(set(texts)) == len(texts)


def test_steps_are_those_of_lightning_under_accumulation() -> None:
    class Logs(Digits):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.log("own", loss)
            return loss

    events = tensorboard(
        Logs(mlp()), InitCallback("kaiming_normal"), accumulate_grad_batches=4,
        log_every_n_steps=1, max_steps=6,
    )  # fmt: skip
    ours = [event.step for event in events.Scalars("lightning_init/update/net.2.weight")]
    assert ours == [0, 1, 2, 5]
    assert set(ours) <= {event.step for event in events.Scalars("own")}


class FakeRun:
    """What Lightning's loggers for W&B and MLflow call `experiment`."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.texts: dict[str, str] = {}
        self.dicts: dict[str, Any] = {}

    def log(self, data: dict[str, Any]) -> None:
        self.logged.append(data)

    def log_text(self, run_id: str, content: str, artifact_file: str) -> None:
        assert run_id == "run"
        self.texts[artifact_file] = content

    def log_dict(self, run_id: str, content: Any, artifact_file: str) -> None:
        self.dicts[artifact_file] = json.loads(json.dumps(content))


class FakeLogger(Logger):
    run_id, version, name = "run", 0, "fake"

    def __init__(self) -> None:
        self.experiment = FakeRun()
        self.metrics: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.metrics.setdefault(step or 0, {}).update(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_text(self, key: str, columns: list[str], data: list[list[str]], step: int) -> None:
        self.experiment.texts[key] = data[0][0]


def test_mlflow_gets_metrics_and_artifacts() -> None:
    class MLFlowLogger(FakeLogger):
        pass

    logger, callback = MLFlowLogger(), InitCallback("kaiming_normal", seed=3)
    nets.fit(Digits(mlp()), callback, logger=logger, max_steps=3)
    assert callback.report is not None
    assert [s for s in logger.metrics if any("lightning_init" in k for k in logger.metrics[s])] == [
        0,
        1,
        2,
    ]
    run = logger.experiment
    assert run.texts["lightning_init/verdict.txt"] == callback.report.verdict()
    assert run.dicts["lightning_init/health.json"] == callback.report.to_dict()


def test_wandb_gets_histograms_at_the_trainers_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class WandbLogger(FakeLogger):
        pass

    class Fake:
        Histogram = staticmethod(list)

    monkeypatch.setitem(__import__("sys").modules, "wandb", Fake)
    logger, callback = WandbLogger(), InitCallback("kaiming_normal", seed=3)
    nets.fit(Digits(mlp()), callback, logger=logger, max_steps=3)
    rows = {row["trainer/global_step"]: row for row in logger.experiment.logged}
    assert sorted(rows) == [0, 1, 2]
    assert {"outputs/net.0", "gradients/net.0.weight", "weights/net.0.weight"} <= set(rows[1])
    assert all(math.isfinite(value) for value in rows[1]["outputs/net.0"])
    assert callback.report is not None
    assert logger.experiment.texts["lightning_init/verdict"] == callback.report.verdict()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger(
        tracking_uri=f"sqlite:///{tmp_path}/runs.db", artifact_location=f"file:{tmp_path}/files"
    )
    callback = InitCallback("kaiming_normal", seed=3)
    nets.fit(Digits(mlp()), callback, logger=logger, max_steps=3)
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path}/runs.db")
    history = client.get_metric_history(logger.run_id, "lightning_init/output_std/net.2")
    assert [point.step for point in history] == [0, 1, 2]
    (found,) = tmp_path.rglob("verdict.txt")
    assert callback.report is not None
    assert found.read_text() == callback.report.verdict()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    nets.fit(Digits(mlp()), InitCallback("kaiming_normal", seed=3), logger=logger, max_steps=3)
    keys = set(logger.experiment.summary.keys())
    logger.experiment.finish()
    assert {"lightning_init/output_std/net.2", "outputs/net.2", "lightning_init/verdict"} <= keys


def test_a_monitor_beside_an_init_callback_leaves_the_watching_to_it() -> None:
    for order in (1, -1):
        monitor, callback = HealthMonitor(), InitCallback("kaiming_normal", seed=3)
        logger = CSVLogger("logs", name=f"both{order}")
        nets.fit(Digits(mlp()), *(monitor, callback)[::order], logger=logger, max_steps=3)
        assert monitor.report is callback.report is not None
        assert monitor.record.steps == ()
        alone = CSVLogger("logs", name=f"alone{order}")
        nets.fit(Digits(mlp()), InitCallback("kaiming_normal", seed=3), logger=alone, max_steps=3)
        rows = [
            len((Path(each.log_dir) / "metrics.csv").read_text().splitlines())
            for each in (logger, alone)
        ]
        assert rows[0] == rows[1]
    idle = InitCallback("kaiming_normal", monitor_steps=0, loss_steps=0)
    nets.fit(Digits(mlp()), monitor, idle, max_steps=3)
    assert monitor.report is not None
    assert len(monitor.record.steps) == 3


def test_a_monitor_that_would_act_otherwise_says_that_it_does_not() -> None:
    with pytest.warns(UserWarning, match="give 'raise' to the InitCallback"):
        nets.fit(Digits(mlp()), InitCallback("orthogonal"), HealthMonitor(on_unhealthy="raise"))


def test_a_monitor_alone_sees_what_an_init_callback_sees() -> None:
    callback = InitCallback("kaiming_normal", seed=3)
    start = nets.AtStart()
    nets.fit(Digits(mlp()), callback, start, max_steps=6)
    module = Digits(mlp())
    module.load_state_dict(start.weights)
    monitor = HealthMonitor()
    nets.fit(module, monitor, max_steps=6)
    assert monitor.report is not None
    assert callback.report is not None
    one, two = monitor.report.readings, callback.report.readings
    assert one.loss == two.loss
    for mine, theirs in zip(one.steps[1:], two.steps[1:], strict=True):
        for out, same in zip(mine.layers, theirs.layers, strict=True):
            assert (out.mean, out.rms, out.grad_rms) == (same.mean, same.rms, same.grad_rms)
        for weight, other in zip(mine.weights, theirs.weights, strict=True):
            assert (weight.rms, weight.grad_rms) == (other.rms, other.grad_rms)
