"""TensorBoard's view of a search: a run for each trial, with hyperparameters, while it goes on.

A run is written to a folder beside and renamed when it is whole, so that a search that is killed
leaves no half of one, and the same command again writes none twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lightning_init.search.trial import Outcome, Trial

_FOLDED = re.compile(r"[^A-Za-z0-9_.=-]+")


@dataclass(frozen=True)
class Board:
    """Writes every trial that has ended; give it to `search_init(seen=...)`.

    Args:
        folder: Of TensorBoard: `tensorboard --logdir FOLDER`.
        goals: What the values of an outcome are called.

    Example:
        >>> import tempfile
        >>> from lightning_init import InitSpec
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trial = Trial(InitSpec("orthogonal"), {}, seed=0, steps=2)
        ...     Board(Path(folder))("screening", 3, trial, Outcome(0.5, ((1, 2.0), (2, 1.0))))
        ...     [str(p.relative_to(folder)) for p in Path(folder).glob("*/*")]
        ['screening/0003-orthogonal-2steps']
    """

    folder: Path
    goals: Sequence[str] = ("metric",)

    def __call__(self, phase: str, number: int, trial: Trial, outcome: Outcome) -> None:
        """Write a trial, unless it is there."""
        place = self.folder / phase / _name(phase, number, trial)
        if place.exists():
            return
        # TensorBoard reads every folder below the one it is given, but none that begins so.
        half = self.folder.parent / f".{self.folder.name}-{os.getpid()}"
        shutil.rmtree(half, ignore_errors=True)
        try:
            self._write(half, trial, outcome)
            place.parent.mkdir(parents=True, exist_ok=True)
            half.rename(place)
        finally:
            shutil.rmtree(half, ignore_errors=True)

    def _write(self, folder: Path, trial: Trial, outcome: Outcome) -> None:
        values = dict(zip(self.goals, outcome.values, strict=False))
        results = {f"metric/{name}": value for name, value in values.items()}
        with SummaryWriter(str(folder)) as writer:
            # Without an experiment of its own: TensorBoard then takes the hyperparameters of all
            # runs together, where it would take the first run's and drop those that only others
            # have.
            described: Any = hparams
            _, start, end = described(dict(_hparams(trial)), results)
            file = writer._get_file_writer()
            file.add_summary(start)
            for name, value in results.items():
                writer.add_scalar(name, value, trial.steps)
            for step, value in _finite(outcome.curve):
                writer.add_scalar("loss", value, step)
            for step, value in _finite(outcome.readings):
                writer.add_scalar(f"reading/{self.goals[0]}", value, step)
            writer.add_scalar("seconds", outcome.seconds, trial.steps)
            writer.add_text("health", "\n".join(_health(outcome)), trial.steps)
            file.add_summary(end)


def _name(phase: str, number: int, trial: Trial) -> str:
    """A folder's: the trial's number in the screening, elsewhere what the run is."""
    strategy = _FOLDED.sub("_", trial.spec.strategy)
    if phase == "screening":
        return f"{number:04d}-{strategy}-{trial.steps}steps"
    what = [trial.spec.to_dict(), dict(trial.config), trial.seed, trial.steps]
    text = json.dumps(what, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{strategy}-{digest}-seed{trial.seed}"


def _hparams(trial: Trial) -> Iterator[tuple[str, Any]]:
    yield "strategy", trial.spec.strategy
    yield from _plain(trial.spec.params)
    for pattern, spec in trial.spec.overrides.items():
        yield f"override {pattern}", str(spec)
    yield from _plain(trial.config)
    yield "seed", trial.seed
    yield "steps", trial.steps


def _plain(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        yield name, value if isinstance(value, (bool, int, float, str)) else str(value)


def _finite(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _health(outcome: Outcome) -> Iterator[str]:
    """Markdown: why it was stopped, and what was found."""
    yield f"stopped: {outcome.reason}" if outcome.reason else "not stopped"
    if taken := outcome.info.get("calibration"):
        yield f"\ncalibration taken back: {taken}"
    for one in outcome.info.get("findings", ()):
        said = f"{one['severity']} {one['detector']} at {one['where']}, step {one['step']}"
        yield f"\n- **{said}**: {one['message']}"
