"""On a real GPU: the same weights, the same readings, and no wait for the device between them.

Skipped where there is none, as `callbacks/test_gpu.py` and `search/test_gpu.py` are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_init import HealthMonitor, InitCallback, audit, initialize_, make_plan
from tests.callbacks import nets
from tests.callbacks.nets import AtStart, Digits, mlp
from tests.zoo import ZOO

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),  # Lightning and CUDA give hints of their own
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nets.seed_all(0)


def fitted(module: Digits, *callbacks: pl.Callback, **arguments: Any) -> InitCallback:
    callback = InitCallback("orthogonal", seed=3)
    nets.fit(module, callback, *callbacks, **{"accelerator": "gpu", "max_steps": 12, **arguments})
    assert callback.report is not None
    assert nets.hooks(module) == []
    return callback


@pytest.mark.parametrize("name", ["resnet", "gpt2", "lstm", "vit"])
@pytest.mark.parametrize("scheme", ["kaiming_normal", "orthogonal", "auto"])
def test_the_same_weights_as_on_the_cpu(name: str, scheme: str) -> None:
    built = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model, _ = ZOO[name]()
        model.to(device)
        initialize_(model, scheme, seed=1, scope="all")
        built.append({key: p.detach().cpu() for key, p in model.named_parameters()})
    assert nets.same(*built)


@pytest.mark.parametrize("scheme", ["lsuv", "metainit"])
def test_calibrations_run_there(scheme: str) -> None:
    model = mlp(64).cuda()
    x, y = (t[:64].cuda() for t in nets.digits().tensors)
    plan = initialize_(
        model, scheme, seed=0, scope="all", forward=lambda: F.cross_entropy(model(x), y)
    )
    assert plan.calibrations
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_the_readings_are_those_of_the_cpu() -> None:
    reports = []
    x, y = (t[:64] for t in nets.digits().tensors)
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = mlp().to(device)
        a, b = x.to(device), y.to(device)
        plan = make_plan(model, "keep")
        reports.append(audit(model, lambda m=model, a=a, b=b: F.cross_entropy(m(a), b), plan=plan))
    for one, two in zip(reports[0].layers, reports[1].layers, strict=True):
        assert one.name == two.name
        assert one.rms == pytest.approx(two.rms, rel=1e-3)
        assert one.grad_rms == pytest.approx(two.grad_rms, rel=1e-3)
    ours, theirs = (report.readings.steps[0].weights for report in reports)
    assert [w.grad_rms for w in ours] == pytest.approx([w.grad_rms for w in theirs], rel=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
def test_gradients_are_unscaled_in_every_precision(precision: str) -> None:
    class Still(Digits):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    start = AtStart()
    callback = fitted(Still(mlp()), start, precision=precision, max_steps=3)
    module = Digits(mlp())
    module.load_state_dict({key: value.float().cpu() for key, value in start.weights.items()})
    loader = iter(nets.ordered())
    next(loader)
    (grad,) = torch.autograd.grad(module.loss(next(loader)), module.net[2].weight)
    (reading,) = [s for s in callback.report.readings.steps if s.step == 1]  # type: ignore[union-attr]
    read = {weight.name: weight.grad_rms for weight in reading.weights}
    assert read["net.2.weight"] == pytest.approx(float((grad**2).mean().sqrt()), rel=0.05)


def test_a_fused_optimizer_under_a_real_gradient_scaler() -> None:
    class Fused(Digits):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.0, fused=True)

    callback = fitted(Fused(mlp()), precision="16-mixed", max_steps=3)
    (reading,) = [s for s in callback.report.readings.steps if s.step == 1]  # type: ignore[union-attr]
    assert 0 < max(weight.grad_rms for weight in reading.weights) < 1


class Unwaiting(pl.Callback):
    """Makes every wait of the host for the device an error, in steps that are not sampled."""

    def __init__(self, steps: Callable[[int], bool]) -> None:
        self.steps, self.checked = steps, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.steps(trainer.global_step):
            torch.cuda.set_sync_debug_mode("error")
            self.checked += 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        torch.cuda.set_sync_debug_mode("default")

    on_exception = on_train_end = lambda self, *_: torch.cuda.set_sync_debug_mode("default")


class OnDevice(pl.LightningModule):
    """Data on the device, nothing logged: what waits is ours."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        x, y = nets.digits().tensors
        self.register_buffer("x", x[:64], persistent=False)
        self.register_buffer("y", y[:64], persistent=False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(self.x), self.y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_between_the_flushes_the_host_never_waits() -> None:
    # Every fifth step inside of the window and every fiftieth after it may move losses.
    quiet = Unwaiting(lambda step: step > 20 and step % 5 not in (0, 4) and step % 10 not in (0, 9))
    loader = torch.utils.data.DataLoader(range(160), batch_size=1)
    module = OnDevice()
    # First in the list: the monitor's hooks run inside of the strict part.
    trainer = nets.trainer(
        quiet, HealthMonitor(monitor_steps=100), accelerator="gpu", max_steps=150
    )
    trainer.fit(module, loader)
    assert quiet.checked > 60


def test_compiled_with_inductor() -> None:
    class Compiled(Digits):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(mlp()))
            self.net.compile()

    callback = fitted(Compiled(), max_steps=12)
    assert len(callback.report.readings.loss) == 12  # type: ignore[union-attr]


def test_a_sick_net_is_found_there() -> None:
    callback = InitCallback("keep")
    nets.fit(Digits(nets.sick()), callback, accelerator="gpu")
    assert callback.report is not None
    assert callback.report.errors
