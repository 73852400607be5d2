"""Whole fits on a real GPU: the weights are the CPU's draw, and what is read is what it says.

Skipped where there is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from lightning_init import InitCallback, initialize_
from tests.callbacks import nets
from tests.callbacks.nets import Digits, mlp
from tests.conftest import Ran, device

ON = "gpu"
DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
PRECISIONS = ["32-true", "bf16-mixed", "16-mixed", *DTYPES]
COMPILED = ["", "the LightningModule", "a submodule", "in configure_model", "in place"]

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),  # Lightning, CUDA and inductor give hints of their own
]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder, an environment and process groups of its own."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    nets.seed_all(0)
    torch._dynamo.reset()
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


class Still(Digits):
    """Its weights do not move, so any step's loss and gradients can be had without a Trainer."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)  # what logs or reads values is not compiled as a whole

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Start(pl.Callback):
    """All weights as the first batch meets them, gathered."""

    weights: dict[str, Tensor]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 0:
            state = trainer.strategy.lightning_module_state_dict()
            self.weights = {
                key.replace("_orig_mod.", ""): getattr(value, "full_tensor", lambda v=value: v)()
                .detach()
                .to("cpu", copy=True)
                for key, value in state.items()
            }


def drawn(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights as the CPU draws them, rounded once."""
    module = Digits(mlp())
    initialize_(module, "orthogonal", seed=3, scope="all")
    return {key: value.to(dtype) for key, value in module.state_dict().items()}


def judged(
    module: Any,
    precision: str,
    compiled: str = "",
    hooks: Sequence[str] = (),
    unread: str = "",
    **arguments: Any,
) -> None:
    """One fit whose weights and readings are those that the CPU has without a Trainer."""
    callback, start = InitCallback("orthogonal", seed=3), Start()
    nets.fit(
        module,
        callback,
        start,
        **{"accelerator": ON, "precision": precision, "max_steps": 3, **arguments},
        use_distributed_sampler=False,  # which shuffles
    )
    assert nets.same(start.weights, drawn(DTYPES.get(precision, torch.float32)))
    assert callback.report is not None
    assert [why for why in callback.report.blind if not unread or unread not in why] == []
    alone = Digits(mlp())
    alone.load_state_dict({key: value.float() for key, value in start.weights.items()})
    loader = iter(nets.ordered())
    losses = [alone.loss(next(loader)) for _ in range(3)]
    readings = callback.report.readings
    read = [loss for _, loss in sorted(readings.loss.items())]
    tolerance = 1e-3 if precision[:2] in ("32", "64") else 0.02
    assert read == pytest.approx([float(loss.detach()) for loss in losses], rel=tolerance)
    if not unread:
        (weight,) = (w for w in readings.steps[1].weights if w.name == "net.2.weight")
        (grad,) = torch.autograd.grad(losses[1], alone.net[2].weight)
        rms = float(grad.square().mean().sqrt())
        assert weight.grad_rms == pytest.approx(rms, rel=3 * tolerance)
    assert [len(step.layers) for step in readings.steps] == [3, 0 if compiled else 3, 3]
    assert nets.hooks(getattr(module, "_orig_mod", module)) == list(hooks)


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_fit_in_each_precision_compiled_in_each_way(
    precision: str, compiled: str, ran: Ran
) -> None:
    class Late(Still):
        def configure_model(self) -> None:
            if not hasattr(self, "net"):
                self.net = torch.compile(mlp())

    module: Any = Late() if compiled == "in configure_model" else Still(mlp())
    if compiled == "a submodule":
        module.net = torch.compile(module.net)
    if compiled == "in place":
        module.net.compile()
    fitted = torch.compile(module) if compiled == "the LightningModule" else module
    judged(fitted, precision, compiled)
    ran("single device", precision, compiled, on=device())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_data_parallel_on_one_gpu(precision: str, ran: Ran) -> None:
    judged(Still(mlp()), precision, strategy="ddp")
    ran("ddp", precision, on=device())


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "64-true"])
def test_fully_sharded_on_one_gpu(precision: str, ran: Ran) -> None:
    strategy = FSDPStrategy(state_dict_type="full")
    judged(Still(mlp()), precision, unread="FSDP1 has cut them up", strategy=strategy)
    ran("fsdp (FSDP1)", precision, on=device())


class Sharded(Still):
    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            with torch.device(self.place) if self.place else nullcontext():
                self.net = mlp()
            for layer in (*self.net, self.net):
                dist.fsdp.fully_shard(layer, mesh=self.device_mesh["data_parallel"])


@pytest.mark.parametrize("place", ["", "meta"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "16-true"])
def test_sharded_as_distributed_tensors_on_one_gpu(precision: str, place: str, ran: Ran) -> None:
    def strategy() -> ModelParallelStrategy:
        return ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)

    # What is sharded keeps torch's own hooks.
    nets.fit(plain := Sharded(place), accelerator=ON, max_steps=1, strategy=strategy())
    judged(Sharded(place), precision, hooks=nets.hooks(plain), strategy=strategy())
    ran(f"model parallel (FSDP2{', meta' if place else ''})", precision, on=device())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_fused_optimizer(precision: str, ran: Ran) -> None:
    class Fused(Still):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.0, fused=True)

    judged(Fused(mlp()), precision)
    ran("single device", precision, on=device())
