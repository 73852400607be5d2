"""Compiled models: the same weights, the same graphs, and layers read beside."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_init import InitCallback
from tests.callbacks import nets
from tests.callbacks.nets import Digits, mlp
from tests.callbacks.watching import (
    Still,
    reading,
)


@pytest.mark.case(35)
@pytest.mark.parametrize("how", ["module", "child", "function"])
def test_compiled_training_is_neither_changed_nor_compiled_again(how: str) -> None:
    class Unlogged(Digits):
        calls: Any = None

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.calls(batch) if self.calls is not None else self.loss(batch)

    def run(*callbacks: pl.Callback) -> tuple[dict[str, torch.Tensor], int, list[float]]:
        torch._dynamo.reset()
        nets.seed_all(2)
        compiled = 0

        def backend(graph: Any, inputs: Any) -> Any:
            nonlocal compiled
            compiled += 1
            return graph.forward

        module = Unlogged(nn.Sequential(*mlp()[:-1], nn.Dropout(0.2), mlp()[-1]))
        fitted: Any = module
        if how == "module":
            fitted = torch.compile(module, backend=backend)
        if how == "child":
            module.net = torch.compile(module.net, backend=backend)
        if how == "function":
            module.calls = torch.compile(module.loss, backend=backend)
        nets.fit(fitted, *callbacks, max_steps=23)
        return nets.weights(module), compiled, module.seen

    plain = run()
    callback = InitCallback("keep", monitor_steps=23)
    watched_run = run(callback)
    assert watched_run[1] == plain[1]
    assert nets.same(watched_run[0], plain[0])
    assert callback.report is not None
    assert callback.report.blind == ()
    steps = {step.step: len(step.layers) for step in callback.report.readings.steps}
    assert steps[2] == steps[20] == 3
    assert steps[5] == steps[22] == 0
    matrices = [weight for weight in reading(callback, 5).weights if len(weight.shape) > 1]
    assert all(weight.update > 0 for weight in matrices)


@pytest.mark.case(35)
def test_what_a_compiled_model_does_beside_is_what_it_does() -> None:
    def run(compiled: bool) -> InitCallback:
        module: Any = Still(mlp())
        if compiled:
            module.net = torch.compile(module.net, backend="aot_eager")
        callback = InitCallback("orthogonal", seed=3)
        nets.fit(module, callback, max_steps=3)
        return callback

    one, two = reading(run(True), 2), reading(run(False), 2)
    for out, same in zip(one.layers, two.layers, strict=True):
        assert out.name == same.name
        assert out.rms == pytest.approx(same.rms, rel=1e-5)
        assert out.grad_rms == pytest.approx(same.grad_rms, rel=1e-4)
    for weight, other in zip(one.weights, two.weights, strict=True):
        assert weight.grad_rms == pytest.approx(other.grad_rms, rel=1e-4)
