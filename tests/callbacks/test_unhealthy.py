"""What a finding does: warn, stop or raise; and what it says."""

from __future__ import annotations

import math
import warnings
from typing import Any

import jsonargparse
import lightning.pytorch as pl
import pytest
import torch

from lightning_init import HealthMonitor, InitCallback
from lightning_init.callbacks.actions import UnhealthyError, UnhealthyWarning
from tests.callbacks import nets
from tests.callbacks.nets import Digits, mlp, sick


class Steps(pl.Callback):
    def __init__(self) -> None:
        self.optimizer, self.batches = 0, 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.optimizer += 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.batches += 1


@pytest.mark.parametrize("make", [lambda **a: InitCallback("keep", **a), HealthMonitor])
def test_warn_says_symptom_place_cause_and_fix(make: Any) -> None:
    steps, callback = Steps(), make()
    with pytest.warns(UnhealthyWarning) as caught:
        nets.fit(Digits(sick()), steps, callback, max_steps=3)
    (lines,) = (str(w.message).splitlines() for w in caught if w.category is UnhealthyWarning)
    assert max(map(len, lines)) <= 80
    text = " ".join(line.strip() for line in lines)
    assert "lightning_init: ERROR backward_growth at net.0" in text
    assert "step 0: gradients vanish on the way back: x0.5" in text
    assert "per layer from net.60 to net.0" in text
    assert "(sane: x0.35 to x2.5 per layer)" in text
    assert "- init scale: weights too small for tanh" in text
    assert 'fix: InitCallback("orthogonal")' in text
    assert steps.batches == 3
    assert [finding.detector for finding in callback.report.errors] == ["backward_growth"]


def test_each_kind_of_finding_is_said_once() -> None:
    with pytest.warns(UnhealthyWarning) as caught:
        nets.fit(Digits(sick()), InitCallback("keep"), max_steps=12)
    ours = [w for w in caught if w.category is UnhealthyWarning]
    assert len(ours) == 1


def test_stop_ends_after_the_first_batch() -> None:
    steps = Steps()
    with pytest.warns(UnhealthyWarning):
        trainer = nets.fit(
            Digits(sick()), steps, InitCallback("keep", on_unhealthy="stop"), max_steps=20
        )
    assert steps.batches == 1
    assert trainer.global_step == 1
    assert nets.hooks(trainer.lightning_module) == []


def test_raise_comes_before_any_optimizer_step() -> None:
    module, steps = Digits(sick()), Steps()
    before = nets.weights(module)
    with pytest.raises(
        UnhealthyError, match=r"unhealthy: ERROR backward_growth at net\.0"
    ) as caught:
        nets.fit(module, steps, InitCallback("keep", on_unhealthy="raise"))
    assert steps.optimizer == steps.batches == 0
    assert nets.same(nets.weights(module), before)
    assert caught.value.report.worst is not None
    assert "fix:" in str(caught.value)
    assert nets.hooks(module) == []


def test_the_remedy_works() -> None:
    callback = InitCallback("orthogonal", on_unhealthy="raise", seed=1)
    nets.fit(Digits(sick(20)), callback, max_steps=3)
    assert callback.report is not None
    assert callback.report.errors == ()


def test_a_warning_alone_neither_stops_nor_raises() -> None:
    module = Digits(mlp())
    x, y = next(iter(nets.ordered()))
    low, high = 1.0, 100.0
    with torch.no_grad():  # a head so large that the loss starts at 1.6 times chance
        weight, hidden = module.net[4].weight.clone(), module.net[:4](x)
        while high - low > 1e-3:
            middle = (low + high) / 2
            loss = torch.nn.functional.cross_entropy(hidden @ weight.T * middle, y)
            low, high = (middle, high) if loss < 1.6 * math.log(10) else (low, middle)
        module.net[4].weight.mul_(low)
        module.net[4].bias.zero_()
    limits = {"initial_loss": {"high": 10.0}}
    callback = InitCallback("keep", on_unhealthy="raise", detectors=limits)
    with pytest.warns(UnhealthyWarning, match="WARNING initial_loss"):
        nets.fit(module, callback)
    assert callback.report is not None
    assert [finding.severity for finding in callback.report.findings] == ["warning"]


def test_nan_that_comes_later_is_found_where_and_when_it_comes() -> None:
    class Breaks(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch_idx == 5:
                pl_module.net[2].weight.data[0, 0] = torch.nan

    callback, steps = InitCallback("keep", on_unhealthy="raise"), Steps()
    with pytest.raises(UnhealthyError, match=r"non_finite at net\.2 \(keep\), step 5"):
        nets.fit(Digits(mlp()), Breaks(), callback, steps, max_steps=12)
    assert steps.batches == 5


def test_a_loss_that_blows_up_after_the_watched_layers_is_found() -> None:
    class Grows(Digits):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) * (1 if batch_idx < 20 else 10)

    callback = InitCallback("keep", monitor_steps=3, loss_steps=40)
    with pytest.warns(UnhealthyWarning, match="loss_blow_up at loss"):
        nets.fit(Grows(mlp()), callback, max_steps=40)
    assert callback.report is not None
    assert callback.report.worst is not None
    assert callback.report.worst.severity == "error"
    assert sorted(callback.report.readings.loss) == list(range(40))


def test_only_the_named_detectors_speak() -> None:
    monitor = HealthMonitor(detectors=["non_finite", "backward_growth"])
    with pytest.warns(UnhealthyWarning, match="backward_growth"):
        nets.fit(Digits(sick()), monitor)
    assert monitor.report is not None
    assert {finding.detector for finding in monitor.report.findings} == {"backward_growth"}


def test_quiet_callbacks_find_without_a_word(said: list[str]) -> None:
    callback = InitCallback("keep", verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnhealthyWarning)
        nets.fit(Digits(sick()), callback)
    assert callback.report is not None
    assert callback.report.errors
    assert not [text for text in said if "lightning_init" in text]


def test_a_trained_model_may_know_something() -> None:
    module = Digits(mlp(), lr=0.02)
    nets.fit(module, InitCallback("orthogonal", seed=1), max_steps=60)
    for callback in (InitCallback("auto"), HealthMonitor()):
        nets.fit(module, callback, max_steps=2)
        assert callback.report is not None
        assert callback.report.findings == ()
        assert callback.report.readings.loss[0] < 1


CALLED: list[Any] = []


def note(trainer: pl.Trainer, module: pl.LightningModule, report: Any) -> None:
    CALLED.append((trainer.global_step, type(module).__name__, report.worst.detector))


def test_a_function_is_called_with_the_report() -> None:
    CALLED.clear()
    with pytest.warns(UnhealthyWarning):
        nets.fit(Digits(sick()), InitCallback("keep", on_unhealthy=note), max_steps=8)
    assert CALLED == [(0, "Digits", "backward_growth")]


def test_actions_ladder_and_rules_come_from_yaml() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--callback", type=list[pl.Callback])
    for action in ("warn", "rescue", f"{__name__}.note"):
        init = {
            "on_unhealthy": action,
            "ladder": ["orthogonal", {"strategy": "normal", "params": {"std": 0.1}}],
            "max_rescues": 2,
            "detectors": {"dead_units": {"limit": 0.9}},
            "profile": "default",
        }
        data = [
            {"class_path": "lightning_init.InitCallback", "init_args": init},
            {
                "class_path": "lightning_init.HealthMonitor",
                "init_args": {"detectors": ["dead_units"]},
            },
        ]
        made = parser.instantiate_classes(parser.parse_object({"callback": data})).callback
        callback, monitor = made
        assert [str(spec) for spec in callback.ladder] == ["orthogonal", "normal(std=0.1)"]
        assert callback.max_rescues == 2
        assert callback.monitor.rules["dead_units"] == {"limit": 0.9}
        assert callback.monitor.rules["non_finite"] == {}
        assert list(monitor.rules) == ["dead_units"]
        given = callback.monitor.on_unhealthy
        assert given == action or given.__qualname__ == "note"


def test_a_bad_batch_is_known_by_its_step() -> None:
    class Bad(Digits):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            if self.trainer.global_step == 7:
                batch[0][3, 4] = math.inf
            return batch

    callback = InitCallback("orthogonal", verbose=False)
    nets.fit(Bad(mlp(), lr=0.003), callback, max_steps=12)
    assert callback.report is not None
    assert callback.report.readings.bad_batches == (7,)
    assert set(callback.report.readings.lr.values()) == {0.003}


def test_losses_are_read_many_at_once() -> None:
    flushed: list[int] = []

    class Counts(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            (callback,) = [c for c in trainer.callbacks if isinstance(c, InitCallback)]
            if callback.monitor.record.unread == 0 and callback.monitor._watching:
                flushed.append(pl_module.number)
            pl_module.number += 1

    module = Digits(mlp())
    module.number = 0
    callback = InitCallback("orthogonal", monitor_steps=12, loss_steps=130)
    nets.fit(module, callback, Counts(), max_steps=140)
    assert flushed[:6] == [1, 2, 5, 10, 11, 61]
    assert callback.report is not None
    assert sorted(callback.report.readings.loss) == list(range(130))
