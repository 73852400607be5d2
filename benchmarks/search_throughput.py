"""What a search costs beside the training itself.

    python -m benchmarks.search_throughput [--quick] [--device gpu] [--cache .benchmarks] [--again]

- `long`: trials of about 5 s through the search against bare calls of `Trainer.fit` and
  `Trainer.validate` with the same flags on the same model and data; at least 85 %.
- `short`: trials of 50 steps of a toy model through the whole search, one core; at least 250 a
  minute.
- `two`: two workers against one, one thread each, trials of 2 s and more; at least 1.7 times.

`long` and `short` run in this process on one thread, so their times are the processor's and do not
depend on what else the machine does. `two` is of the wall: it needs two idle cores. On a GPU all are
of the wall, and the two workers share it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_init import Space, search_init
from lightning_init.search.evaluate import JobEvaluate
from lightning_init.search.job import SHORT, Job
from lightning_init.search.objectives import Objective
from lightning_init.search.serve import quiet
from lightning_init.search.trial import Trial
from lightning_init.strategies.spec import InitSpec

ROOT = Path(__file__).parents[1]
TARGETS = {"long": 0.85, "short": 250.0, "two": 1.7}
UNITS = {"long": "of bare fits", "short": "trials a minute", "two": "times one worker"}


class Toy(pl.LightningModule):
    """A network with two hidden layers."""

    def __init__(self, width: int = 64, lr: float = 0.01) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Linear(20, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


class ToyData(pl.LightningDataModule):
    """A rule that can be learned."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:  # noqa: ARG002
        x = torch.randn(2048, 20, generator=torch.Generator().manual_seed(0))
        self.whole = TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.whole, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*self.whole[:256]), 256)


DEVICE = "cpu"  # the Trainer's accelerator


def config(width: int = 64, batch_size: int = 32) -> dict[str, Any]:
    here = "benchmarks.search_throughput"
    return {
        "model": {"class_path": f"{here}.Toy", "init_args": {"width": width}},
        "data": {"class_path": f"{here}.ToyData", "init_args": {"batch_size": batch_size}},
        "trainer": {"accelerator": DEVICE},
    }


def evaluator(data: dict[str, Any]) -> JobEvaluate:
    return JobEvaluate(data, (Objective("last", "val_loss", "min"),))


def trial(seed: int, steps: int) -> Trial:
    return Trial(InitSpec("orthogonal"), {}, seed, steps)


def bare(job: Job, seed: int, steps: int) -> None:
    model, data, trainer = job.build(seed, {}, [], **SHORT, max_steps=steps)
    trainer.fit(model, datamodule=data)
    trainer.validate(model, datamodule=data, verbose=False)


def never(step: int, value: float) -> bool:
    del step, value
    return False


class Ends:
    """When each trial of the screening ended; give it to `search_init(seen=...)`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.times = clock, []

    def __call__(self, phase: str, *news: object) -> None:
        del news
        if phase == "screening":
            self.times.append(self.clock())


def clock() -> float:
    """Of the process on a CPU, of the wall on a GPU."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(act: Callable[[], object]) -> float:
    began = clock()
    act()
    return clock() - began


def long(rounds: int, wanted: float) -> tuple[float, str]:
    """Time of bare fits over that of trials, in turns."""
    data = config(width=512, batch_size=256)
    job, evaluate = Job(data), evaluator(data)
    bare(job, 0, 20)
    evaluate(trial(0, 20), never)
    steps = int(200 * wanted / seconds(lambda: bare(job, 0, 200)))
    theirs, ours = [], []
    for seed in range(rounds):
        theirs.append(seconds(lambda s=seed: bare(job, s, steps)))
        ours.append(seconds(lambda s=seed: evaluate(trial(s, steps), never)))
    ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
    return ratio, f"{steps} steps, {statistics.median(theirs):.2f} s bare, {rounds} rounds"


def short(trials: int) -> tuple[float, str]:
    """Trials a minute of the screening, with the study's file and the sampler."""
    seen = Ends(clock)
    with tempfile.TemporaryDirectory() as folder:
        search_init(
            evaluator(config()),
            Space(("orthogonal", "kaiming_normal", "xavier_normal")),
            trials=trials,
            steps=50,
            confirm_seeds=2,
            top=1,
            storage=Path(folder) / "study.journal",
            seen=seen,
        )
    ends = seen.times
    each = (ends[-1] - ends[2]) / (len(ends) - 3)  # the first ones import and build
    return 60 / each, f"{len(ends)} trials of 50 steps, {1000 * each:.0f} ms each"


def two(trials: int, wanted: float) -> tuple[float, str]:
    """Trials a second of two workers over that of one, wall."""
    data = config(width=512, batch_size=256)
    job = Job(data)
    bare(job, 0, 20)
    steps = int(200 * wanted / seconds(lambda: bare(job, 0, 200)))
    rates = {}
    for workers in (1, 2):
        seen = Ends(time.perf_counter)
        search_init(
            evaluator(data),
            Space(("orthogonal", "kaiming_normal", "xavier_normal")),
            trials=trials,
            steps=steps,
            confirm_seeds=2,
            top=1,
            workers=workers,
            pruning=False,
            seen=seen,
        )
        ends = seen.times
        rates[workers] = (len(ends) - workers) / (ends[-1] - ends[workers - 1])
    load = os.getloadavg()[0]
    about = f"{steps} steps, {1 / rates[1]:.2f} s a trial with one, load {load:.1f}"
    return rates[2] / rates[1], about


def key(quick: bool) -> str:
    """What the figures depend on: this package, these versions."""
    digest = hashlib.sha256(f"{quick} {DEVICE} {torch.__version__} {pl.__version__}".encode())
    for path in [Path(__file__), *sorted((ROOT / "lightning_init").rglob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute, coarser")
    parser.add_argument("--cache", type=Path, default=ROOT / ".benchmarks")
    parser.add_argument("--again", action="store_true", help="measure, whatever is stored")
    parser.add_argument("--only", choices=TARGETS, action="append", help="repeatable")
    parser.add_argument("--device", default=DEVICE, choices=("cpu", "gpu"))
    options = parser.parse_args()
    globals()["DEVICE"] = options.device
    quiet()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    parts = {
        "long": lambda: long(3, 1.0) if options.quick else long(7, 5.0),
        "short": lambda: short(30 if options.quick else 100),
        "two": lambda: two(6, 1.0) if options.quick else two(14, 2.5),
    }
    file = options.cache / "search" / f"throughput-{key(options.quick)}.json"
    stored = json.loads(file.read_text()) if file.exists() and not options.again else {}
    if options.device != "cpu":
        print(f"on {torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name in options.only or TARGETS:
        figure, about = stored[name] if name in stored else parts[name]()
        stored[name] = [figure, about]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(stored))
        held = "holds" if figure >= TARGETS[name] else "MISSED"
        print(
            f"{name}: {figure:.3g} {UNITS[name]}, target {TARGETS[name]:g}, "
            f"{figure / TARGETS[name]:.2f} of it: {held} ({about})",
            flush=True,
        )


if __name__ == "__main__":
    main()
