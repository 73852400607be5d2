"""Two processes that run one function after the other; they are started once, which costs most."""

from __future__ import annotations

import os
import socket
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from lightning_init.architecture.sharded import whole
from tests.callbacks import nets

Scene = Callable[[Path], None]


def together(folder: Path, *scenes: Scene) -> None:
    """Run functions at module level in two processes; each gets a folder that both share."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_work, (port, folder, scenes), nprocs=2)


def _work(rank: int, port: int, folder: Path, scenes: tuple[Scene, ...]) -> None:
    # As torchrun sets them: Lightning then takes these processes for its own.
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        TORCHELASTIC_RUN_ID="tests",
    )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for scene in scenes:
        own = folder / scene.__name__
        own.mkdir(exist_ok=True)
        os.chdir(own)
        nets.seed_all(rank)  # nobody seeded them alike
        try:
            scene(own)
        except Exception:
            (own / f"failed{rank}.txt").write_text(traceback.format_exc())
            raise
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # at the end of an interpreter, gloo's threads may abort it


class FSDP1(FSDPStrategy):
    """On the CPU, which Lightning's own class refuses."""

    model_sharded_context = contextmanager(lambda self: iter([None]))

    def _setup_model(self, model: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


def fsdp2() -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)


def net() -> nn.Sequential:
    """Rows that two processes cannot share evenly, one row for both, matrices wide and tall."""
    return nn.Sequential(
        *(nn.Linear(64, 33), nn.LayerNorm(33), nn.ReLU()),
        *(nn.Linear(33, 5), nn.Tanh(), nn.Linear(5, 1), nn.Linear(1, 10)),
    )


class Late(nets.Digits):
    """Builds its net in `configure_model`, as strategies that shard want it."""

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = net()


class Sharded(Late):
    """And shards it there, layer by layer."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        if not hasattr(self, "net"):
            self.net = net()
            mesh = self.device_mesh["data_parallel"]
            for layer in self.net:
                if any(True for _ in layer.parameters()):
                    fully_shard(layer, mesh=mesh)
            fully_shard(self.net, mesh=mesh)


class ShardedOnMeta(Sharded):
    """And leaves the memory to the strategy."""

    def configure_model(self) -> None:
        with torch.device("meta"):
            super().configure_model()


def full_weights(trainer: pl.Trainer) -> dict[str, Tensor]:
    """All weights as one process would have them; all processes call this."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model: Any = trainer.strategy.model
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            found = {n: p.detach().clone() for n, p in model.named_parameters()}
    else:
        found = {n: whole(p).clone() for n, p in trainer.lightning_module.named_parameters()}
    return {name.replace("_fsdp_wrapped_module.", ""): value for name, value in found.items()}


class Start(pl.Callback):
    """The weights that the first training batch meets."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if not self.weights:
            self.weights = full_weights(trainer)
