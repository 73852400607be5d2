"""Evaluate functions that cost nothing; every call is written down, also from worker processes."""

import hashlib
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from lightning_init.search.job import ConfigError
from lightning_init.search.space import Space, around
from lightning_init.search.trial import Evaluate, Outcome, Report, Trial

LR = "model.init_args.lr"
SPACE = Space(("orthogonal", "normal", "xavier_normal"), {LR: around(0.01)})
Call = tuple[str, float, int, int, bool]


def noise(trial: Trial) -> float:
    text = f"{trial.spec}{sorted(trial.config.items())}{trial.seed}"
    digest = hashlib.sha256(text.encode()).digest()
    return float(np.random.default_rng(list(digest)).normal())


def valley(trial: Trial, report: Report) -> Outcome:
    """Smaller is better; `orthogonal` is better by 1."""
    far = abs(math.log10(trial.config.get(LR, 0.01)) + 2)
    metric = 2.0 - (trial.spec.strategy == "orthogonal") + far + 0.01 * noise(trial)
    curve = tuple((step, metric + 1 / step) for step in range(1, trial.steps + 1))
    for step, value in curve[:3]:
        assert not report(step, value)
    return Outcome(metric, curve, info={"threads": 1})


def only_noise(trial: Trial, report: Report) -> Outcome:
    return Outcome(1.0 + 0.1 * noise(trial), ((1, 2.0), (2, 1.0)))


def half_unhealthy(trial: Trial, report: Report) -> Outcome:
    """Two of four strategies and the upper quarter of the learning rates do not train."""
    if trial.spec.strategy in ("normal", "uniform") or trial.config[LR] > 0.0316:
        return Outcome(None, reason="activations vanish")
    return valley(trial, report)


def loads_with_a_worker(trial: Trial, report: Report) -> Outcome:
    """As users do: a data loader with a process of its own."""
    total = sum(float(x.sum()) for x in DataLoader(torch.ones(8, 1), batch_size=4, num_workers=1))
    assert total == 8.0
    return valley(trial, report)


def always_raises(trial: Trial, report: Report) -> Outcome:
    raise RuntimeError("no such\nlayer: conv9")


def mistaken(trial: Trial, report: Report) -> Outcome:
    raise ConfigError("--monitor: unknown metric 'val_los'")


@dataclass
class Recorded:
    """Writes each call down, then evaluates; `trouble(trial, times seen before)` may interfere."""

    folder: Path
    evaluate: Evaluate = valley
    trouble: Callable[[Trial, int], None] | None = None

    def __call__(self, trial: Trial, report: Report) -> Outcome:
        call = (trial.spec.strategy, trial.config.get(LR, 0.0), trial.seed, trial.steps)
        before = sum(known[:4] == call for known in self.calls)
        with (self.folder / "calls").open("a") as file:
            file.write(json.dumps([*call, trial.gated]) + "\n")
        if self.trouble is not None:
            self.trouble(trial, before)
        return self.evaluate(trial, report)

    @property
    def calls(self) -> list[Call]:
        path = self.folder / "calls"
        return (
            [tuple(json.loads(x)) for x in path.read_text().splitlines()] if path.exists() else []
        )


@dataclass(frozen=True)
class OnStrategy:
    """Does something to the first `times` runs of one strategy at the user's learning rate."""

    act: Callable[[], None]
    strategy: str = "orthogonal"
    times: int = 1

    def __call__(self, trial: Trial, before: int) -> None:
        if (
            trial.spec.strategy == self.strategy
            and trial.config[LR] == 0.01
            and before < self.times
        ):
            self.act()


@dataclass
class AtCall:
    """Does something once, at the n-th call of this process."""

    number: int
    act: Callable[[], None]
    seen: int = field(default=0)

    def __call__(self, trial: Trial, before: int) -> None:
        self.seen += 1
        if self.seen == self.number:
            self.act()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    raise RuntimeError("out of luck")


def interrupt() -> None:
    raise KeyboardInterrupt
