"""What watching costs: the first hundred steps with `InitCallback()` over the same without.

Fits take turns in random order, one thread on a CPU; times are of the process there, of the wall
(synchronized at each step) on a GPU. A step lasts from the beginning of one training batch to that
of the next, so that all that a callback does is in it, the audit and the drawing too. `watched` are
the steps that are read layer by layer; the first batch, which is audited, is in `first 100` only.
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from benchmarks.health_runs import Batch, Run, Task, loader
from lightning_init import InitCallback
from lightning_init.callbacks.schedule import sampled

WINDOW, AFTER = 100, 40


class Timer(Callback):
    """Notes when each training batch begins; the first of the callbacks."""

    def __init__(self, device: str) -> None:
        self.device, self.times = device, []

    def now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        self.times.append(self.now())

    def on_train_end(self, *_: Any) -> None:
        self.times.append(self.now())


class Watch(Callback):
    """`watch` of Weights & Biases, as often as ours reads."""

    def on_fit_start(self, _: pl.Trainer, pl_module: pl.LightningModule) -> None:
        import wandb

        self.run = wandb.init(
            mode="offline",
            dir=tempfile.mkdtemp(),
            project="overhead",
            settings=wandb.Settings(silent=True),
        )
        self.run.watch(pl_module, log="all", log_freq=10)

    def on_train_batch_end(self, *_: Any) -> None:
        self.run.log({"step": 1})

    def on_fit_end(self, _: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.run.unwatch(pl_module)
        self.run.finish()


class WithLoss(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x).flatten(0, -2), y.flatten())


def mlp() -> nn.Module:
    """20 layers of 512 units."""
    layers: list[nn.Module] = []
    for _ in range(19):
        layers += [nn.Linear(512, 512), nn.ReLU()]
    return WithLoss(nn.Sequential(*layers, nn.Linear(512, 10)))


class Basic(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for _ in range(2))
        self.skip = (
            nn.Identity()
            if before == after
            else nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.one(x)))
        return F.relu(self.skip(x) + self.norms[1](self.two(y)))


def resnet() -> nn.Module:
    """ResNet-20 for images of 32 by 32."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    before = 16
    for stage, after in enumerate((16, 32, 64)):
        for block in range(3):
            layers.append(Basic(before, after, 2 if stage and not block else 1))
            before = after
    return WithLoss(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    )


class Transformer(nn.Module):
    """Causal layers."""

    def __init__(self, layers: int = 4, width: int = 256, length: int = 128) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(512, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 512)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=x.device)
        z = self.table(x) + self.positions(torch.arange(length, device=x.device))
        return self.head(self.body(z, mask=mask, is_causal=True))


def _noise(shape: tuple[int, ...], classes: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    return x, torch.randint(classes, shape[:1], generator=generator)


def _tokens(length: int = 128, samples: int = 16) -> Batch:
    x = torch.randint(512, (samples, length + 1), generator=torch.Generator().manual_seed(0))
    return x[:, :-1], x[:, 1:]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch]]] = {
    "MLP, 20 layers of 512, batch 256": (mlp, lambda: _noise((256, 512), 10)),
    "ResNet-20, 32 x 32, batch 64": (resnet, lambda: _noise((64, 3, 32, 32), 10)),
    "transformer, 4 layers of 256, 16 x 128 tokens": (
        lambda: WithLoss(Transformer()),
        _tokens,
    ),
}
LARGE = {  # on a GPU only
    "transformer, 12 layers of 768, 8 x 512 tokens": (
        lambda: WithLoss(Transformer(12, 768, 512)),
        lambda: _tokens(512, 8),
    ),
}


@cache
def variants() -> dict[str, Callable[[], list[Callback]]]:
    found: dict[str, Callable[[], list[Callback]]] = {
        "bare": list,
        "InitCallback()": lambda: [InitCallback(verbose=False)],
        "the same, TensorBoard": lambda: [InitCallback(verbose=False)],
    }
    try:
        import wandb  # noqa: F401
    except ImportError:
        print("wandb is not installed: no column for it")
    else:
        found["wandb watch, all, every 10"] = lambda: [Watch()]
    return found


def step_times(name: str, variant: str, device: str) -> list[float]:
    """Seconds of each step of one fit."""
    build, data = {**MODELS, **LARGE}[name]
    batch = data()
    run = Run(
        name,
        name,
        build,
        lambda _: batch,
        lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
        WINDOW + AFTER,
    )
    timer = Timer(device)
    torch.manual_seed(0)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu" if device == "cpu" else "gpu",
            devices=1,
            max_steps=run.steps,
            callbacks=[timer, *variants()[variant]()],
            logger="TensorBoard" in variant,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Task(run), loader(run))
    return [after - start for start, after in zip(timer.times[:-1], timer.times[1:], strict=True)]


def measure(name: str, device: str, rounds: int) -> dict[str, list[list[float]]]:
    """Variant -> step times of each round."""
    found: dict[str, list[list[float]]] = {variant: [] for variant in variants()}
    if device != "cpu":
        step_times(name, "bare", device)  # the first kernels take their time
    order = random.Random(0)
    for _ in range(rounds):
        for variant in order.sample(list(found), len(found)):
            found[variant].append(step_times(name, variant, device))
    return found


def ratios(ours: list[list[float]], bare: list[list[float]]) -> tuple[float, float, float]:
    """First hundred steps, watched steps but for the first, and steps after the window."""
    read = [step for step in range(1, WINDOW) if sampled(step, WINDOW)]

    def middle(rounds: list[list[float]], steps: list[int]) -> float:
        return statistics.median(times[step] for times in rounds for step in steps)

    total = statistics.median(sum(times[:WINDOW]) for times in ours) / statistics.median(
        sum(times[:WINDOW]) for times in bare
    )
    late = list(range(WINDOW + 5, WINDOW + AFTER))
    plain = list(range(1, WINDOW))
    return total, middle(ours, read) / middle(bare, plain), middle(ours, late) / middle(bare, late)


def added(ours: list[list[float]], bare: list[list[float]]) -> float:
    """Seconds by which the first hundred steps are longer."""
    one, two = (statistics.median(sum(t[:WINDOW]) for t in times) for times in (ours, bare))
    return one - two


def report(device: str, rounds: int, only: str = "") -> str:
    """The table."""
    place = torch.cuda.get_device_name() if device != "cpu" else "one CPU thread"
    lines = [f"On {place}, torch {torch.__version__}, medians of {rounds} fits.", ""]
    more = "" if device == "cpu" else " seconds more |"
    lines += [f"| model | callback | first 100 steps | watched steps | after | ms a step |{more}"]
    lines += ["|---|---|---|---|---|---|" + "---|" * bool(more)]
    for name in MODELS if device == "cpu" else {**MODELS, **LARGE}:
        if only not in name:
            continue
        found = measure(name, device, rounds)
        for variant, times in found.items():
            step = 1000 * statistics.median(statistics.median(t[1:WINDOW]) for t in times)
            cells = [f"{ratio:.2f}" for ratio in ratios(times, found["bare"])]
            assert all(math.isfinite(float(cell)) for cell in cells)
            cells.append(f"{step:.1f}")
            if more:
                cells.append(f"{added(times, found['bare']):.2f}")
            lines.append(f"| {name} | {variant} | {' | '.join(cells)} |")
        print("\n".join(lines[-len(found) :]), flush=True)
    return "\n".join(lines)
