"""One watched training, stored; what a monitor says of it, step by step, is judged afterwards.

Training is dear and judging is cheap. A run trains once in a real Trainer, with the callback a user
would add, and keeps the readings; `judge` examines their beginnings as the monitor would have at
each step. So limits can be moved and rules rewritten without training again. A change of what is
read makes stored runs void: they are trained again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import pickle
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_init import HealthMonitor, InitCallback
from lightning_init.architecture import readings as values
from lightning_init.architecture.readings import Readings
from lightning_init.health.findings import Finding
from lightning_init.health.registry import Profile, Rules, examine

Batch = tuple[Any, ...]
# When the monitor judges: after each step that it reads, else every five, after 100 every 50 (see
# `schedule`); 19 and 49 are the ends of shorter trainings.
MOMENTS = tuple(sorted((0, 1, 2, *range(5, 100, 5), 19, 49, 99, 149, 199)))


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: Unique; the file in the cache is named after it.
        family: What it is counted under.
        build: Called under the run's seed; the model returns its loss for a batch.
        batch: Step -> batch.
        optimizer: Trainable parameters -> optimizer.
        steps: Training steps.
        warmup: Steps over which the learning rate rises from 0, 0 for a constant one.
        precision: As Trainer takes it.
        strategy: `"keep"` watches the model as built; else what InitCallback draws first.
        plant: Changes the model before the first step, None for a healthy run.
        seed: Of the model, the drawn weights and dropout.
        watched: Steps that are read layer by layer.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    steps: int = 40
    warmup: int = 0
    precision: str = "32-true"
    strategy: str = "keep"
    plant: Callable[[nn.Module], None] | None = None
    seed: int = 0
    watched: int = 100


@dataclass(frozen=True)
class Record:
    """What is left of a training.

    Attributes:
        name: The run's.
        family: The run's.
        readings: All that the monitor read.
        losses: Training loss by step, as the optimizer met it.
        blind: What the monitor could not read.
        error: What ended the training early, `""` if nothing did.
        seconds: Wall-clock time.
        extra: What a benchmark adds, e.g. a label.
    """

    name: str
    family: str
    readings: Readings
    losses: tuple[float, ...]
    blind: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)


class Task(pl.LightningModule):
    """A model that returns its loss."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model = run.build()
        self.run, self.losses = run, []
        if run.plant is not None:
            run.plant(self.model)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        loss = self.model(*batch)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self.run.optimizer(p for p in self.parameters() if p.requires_grad)
        if not self.run.warmup:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / self.run.warmup)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def loader(run: Run) -> DataLoader[Batch]:
    return DataLoader([run.batch(step) for step in range(run.steps)], batch_size=None)


def trainer(run: Run, callbacks: list[Callback], device: str = "cpu") -> pl.Trainer:
    return pl.Trainer(
        accelerator=device,
        devices=1,
        max_steps=run.steps,
        precision=run.precision,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def train(run: Run) -> Record:
    """Train and watch."""
    began = time.perf_counter()
    error = ""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(run.seed)
        task = Task(run)
        if run.strategy == "keep":
            watch: HealthMonitor | InitCallback = HealthMonitor(run.watched, verbose=False)
        else:
            watch = InitCallback(
                run.strategy, seed=run.seed, monitor_steps=run.watched, verbose=False
            )
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        try:
            trainer(run, [watch]).fit(task, loader(run))
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
    report = watch.report
    return Record(
        run.name,
        run.family,
        Readings() if report is None else report.readings,
        tuple(float(loss) for loss in task.losses),
        () if report is None else report.blind,
        error,
        time.perf_counter() - began,
    )


def stored(
    runs: Iterable[Run], cache: Path, *, enough: int = 0, say: bool = True
) -> Iterator[Record]:
    """The records of the runs, from the cache where they are there.

    What a run came to does not depend on what is read of it: with `enough`, a run whose losses are
    known is watched for so many steps only.
    """
    (cache / "losses").mkdir(parents=True, exist_ok=True)
    for index, run in enumerate(runs):
        key = hashlib.sha256(f"{_VERSION} {run.name}".encode()).hexdigest()[:16]
        path = cache / f"{key}.pkl"
        known = cache / "losses" / f"{hashlib.sha256(run.name.encode()).hexdigest()[:16]}.pkl"
        if path.exists():
            yield pickle.loads(path.read_bytes())
            continue
        if enough and known.exists():
            record = train(dataclasses.replace(run, steps=min(run.steps, enough)))
            record = dataclasses.replace(record, losses=pickle.loads(known.read_bytes()))
        else:
            record = train(run)
            known.write_bytes(pickle.dumps(record.losses))
        path.write_bytes(pickle.dumps(record))
        if say:
            problem = f"  {record.error[:100]}" if record.error else ""
            print(f"{index + 1:4d} {run.name}: {record.seconds:.1f} s{problem}", flush=True)
        yield record


def _version() -> str:
    """Changes with the fields of the readings."""
    kinds = [kind for kind in vars(values).values() if dataclasses.is_dataclass(kind)]
    return repr(sorted((k.__name__, [f.name for f in dataclasses.fields(k)]) for k in kinds))


_VERSION = _version()


@dataclass(frozen=True)
class Verdict:
    """What the monitor would have said.

    Attributes:
        findings: All that were said, each as it was first said at its severity, with the step at
            which that was.
    """

    findings: tuple[tuple[int, Finding], ...]

    def first(self, *severities: str, within: int = 10**9) -> tuple[int, Finding] | None:
        """The first finding of one of the severities said by that step, the worst of its step."""
        said = [one for one in self.findings if one[1].severity in severities and one[0] < within]
        return min(said, key=lambda one: (one[0], one[1].severity != "error"), default=None)


def judge(
    record: Record,
    chosen: Rules | None = None,
    profile: Profile = "default",
    until: int = 10**9,
) -> Verdict:
    """What the monitor would have said of a run up to a step, by what it had read at each."""
    said: dict[tuple[str, str], tuple[int, Finding]] = {}
    last = min(len(record.losses), until) - 1
    moments = [step for step in MOMENTS if step < last] + [max(last, 0)]
    for moment in moments:
        for finding in examine(before(record.readings, moment), chosen, profile):
            said.setdefault((finding.detector, finding.severity), (moment, finding))
    return Verdict(tuple(said.values()))


def before(readings: Readings, step: int) -> Readings:
    """What had been read after that step."""
    return dataclasses.replace(
        readings,
        steps=tuple(one for one in readings.steps if one.step <= step),
        loss={at: loss for at, loss in readings.loss.items() if at <= step},
        lr={at: lr for at, lr in readings.lr.items() if at <= step},
        bad_batches=tuple(at for at in readings.bad_batches if at <= step),
    )


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if of == 0:
        return 0.0, 1.0
    share = hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def share(hits: int, of: int) -> str:
    """`35/36 = 97 % (86 to 100)`: with its Wilson interval."""
    low, high = wilson(hits, of)
    part = 100 * hits / of if of else math.nan
    return f"{hits}/{of} = {part:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def mean(losses: Iterable[float]) -> float:
    numbers = list(losses)
    return sum(numbers) / len(numbers) if numbers else math.nan
