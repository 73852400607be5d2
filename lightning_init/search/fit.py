"""One short fit of a fresh model: what a trial is, whoever brings model, data and Trainer.

A fit reports its training loss about twenty times, ends where it is told to or where its start is
not healthy, and is read off on the way and at its end. It trains as it would without being
watched: weights, data order and random state are those of a plain `Trainer.fit`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_init.callbacks.init import InitCallback
from lightning_init.search.curve import Curve
from lightning_init.search.job import SHORT, interruptible
from lightning_init.search.marks import Marks
from lightning_init.search.members import validate_together
from lightning_init.search.objectives import Objective
from lightning_init.search.readout import TRAIN_LOSS, Readout
from lightning_init.search.trial import Outcome, Report, Trial
from lightning_init.strategies.apply import fingerprint
from lightning_init.strategies.needs import UnsuitableError
from lightning_init.strategies.spec import InitSpec

Made = tuple[pl.LightningModule, pl.LightningDataModule | None, pl.Trainer]
Build = Callable[[int, Sequence[pl.Callback], Mapping[str, Any]], Made]

_FREE: dict[str, Any] = {**SHORT, "min_steps": None, "min_epochs": None}


def short_fit(
    build: Build, trial: Trial, report: Report, objectives: Sequence[Objective]
) -> Outcome:
    """Fit a fresh model for a few steps and read its objectives.

    Args:
        build: `build(seed, callbacks, settings)` seeds everything and makes model, data module
            and Trainer, with these callbacks last and these Trainer arguments.
        trial: What to try; `build` knows its configuration.
        report: `report(step, training loss)` says whether to stop.
        objectives: What to read; the first is `Outcome.metric`, the others `Outcome.others`.

    Returns:
        The outcome; one without a metric has a reason.

    Raises:
        ConfigError: If a monitored metric is not logged, or an objective cannot be read.
    """
    began = time.perf_counter()
    gate = InitCallback.from_spec(
        InitSpec(trial.spec.strategy, trial.spec.params, trial.spec.overrides),
        on_unhealthy="warn",
        verbose=False,
        monitor_steps=min(100, trial.steps),
        loss_steps=trial.steps,
    )
    curve = Curve(trial, gate, report)
    readout = Readout(trial, objectives, gate)
    marks = Marks(
        readout.steps,
        lambda: {TRAIN_LOSS: curve.end()},
        readout.end,
        lambda: bool(curve.reason),
    )
    settings = {**_FREE, "max_steps": trial.steps}
    model, data, trainer = build(trial.seed, [gate, curve, readout, marks], settings)
    with interruptible():
        try:
            trainer.fit(model, datamodule=data)
        except UnsuitableError as error:  # no crash: the same again would end the same
            return Outcome(None, (), str(error), time.perf_counter() - began)
    info = {
        "init_fingerprint": gate.fingerprint,
        "final_fingerprint": fingerprint(model),
        "threads": torch.get_num_threads(),
        "steps": trainer.global_step,
        "findings": [f.to_dict() for f in gate.report.findings] if gate.report else [],
        "calibration": _calibration(gate),
        "lr": [list(point) for point in curve.rates],
    }
    outcome = Outcome(None, curve.points, curve.reason, info=info)
    if not curve.reason:
        for size in {int(o.value or 0) for o in objectives if o.kind == "ensemble"}:
            readout.together[size] = _together(build, trial, model, size)
        found, reason = readout.values(marks.found)
        info.update(readout.info)
        outcome = replace(
            outcome,
            metric=found[0] if found else None,
            reason=reason,
            others=tuple(found[1:]),
            readings=readout.readings(marks.found),
        )
    return replace(outcome, seconds=time.perf_counter() - began)


def _together(
    build: Build, trial: Trial, first: pl.LightningModule, size: int
) -> Mapping[str, float]:
    """The metrics of the first model and `size - 1` others, trained alike on seeds of their own."""
    others, found = [first], {}

    def end(trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if len(others) == size - 1:
            found.update(validate_together(trainer, module, others))

    for number in range(1, size):
        gate = InitCallback.from_spec(
            InitSpec(trial.spec.strategy, trial.spec.params, trial.spec.overrides),
            verbose=False,
            monitor_steps=0,
            loss_steps=0,
        )
        marks = Marks((), dict, end, lambda: False)
        settings = {**_FREE, "max_steps": trial.steps}
        model, data, trainer = build(member_seed(trial.seed, number), [gate, marks], settings)
        with interruptible():
            trainer.fit(model, datamodule=data)
        others.append(model)
    return found


def member_seed(seed: int, number: int) -> int:
    """The seed of an ensemble's member, the same for every trial of a seed.

    Args:
        seed: The trial's, which is that of member 0.
        number: The member, from 0.

    Example:
        >>> member_seed(7, 0), member_seed(7, 1) == member_seed(7, 1) != member_seed(8, 1)
        (7, True)
    """
    if not number:
        return seed
    digest = hashlib.sha256(f"member {number} of {seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _calibration(gate: InitCallback) -> str:
    """What a data-dependent scheme took back, in words; `""` if its result stands."""
    found = gate.plan.calibrations if gate.plan is not None else ()
    return "; ".join(f"{one.scheme} taken back: {one.why}" for one in found if not one.accepted)
