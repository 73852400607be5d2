"""All that was read in one fit, and what it means so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_init.architecture.readings import Readings, StepReading
from lightning_init.architecture.sharded import is_flat
from lightning_init.callbacks.agree import Agreement
from lightning_init.callbacks.forward import training_forward
from lightning_init.callbacks.tally import Tally
from lightning_init.callbacks.watch import small_eps
from lightning_init.health.attempts import Attempt
from lightning_init.health.audit import audit
from lightning_init.health.findings import Finding
from lightning_init.health.registry import Rules, examine
from lightning_init.health.report import Report
from lightning_init.strategies.plan import Plan

_NO_LOSS = "loss: this training_step returns none"
_NO_FIRST = "first batch: its training_step returned no loss"


class Record:
    """Collects readings, and judges them when it is asked.

    Args:
        rules: The detectors to use.

    Attributes:
        tally: What every step leaves behind.
        steps: The steps that were read layer by layer.
        attempts: Initializations that were tried.
        blind: What could not be read, and why.
        unread: Steps since the last judgement.
    """

    def __init__(self, rules: Rules) -> None:
        self.tally, self.rules = Tally(), rules
        self.steps: tuple[StepReading, ...] = ()
        self.attempts: tuple[Attempt, ...] = ()
        self.blind: tuple[str, ...] = ()
        self.unread = 0
        self._first = Readings()
        self._agree = Agreement()
        self._said: set[tuple[str, str]] = set()

    def audit(self, module: pl.LightningModule, batch: Any, plan: Plan | None) -> None:
        """Read the first batch, in place of what was read before."""
        self.steps, self._first, self._agree = (), Readings(), Agreement()
        if any(is_lazy(parameter) for parameter in module.parameters()):
            self.miss("first batch: lazy layers have no weights yet")
            return
        if any(map(is_flat, module.parameters())):
            self.miss("weights and their gradients: FSDP1 has cut them up; outputs are read")
        try:
            forward = training_forward(module, batch)
            found = audit(module, forward, plan=plan, detectors=[])
            self._first = found.readings
            for what in found.blind:
                self.miss(what)
        except Exception as error:
            self.miss(f"first batch: the audit could not run ({error})")
        self.steps = self._first.steps

    def end(self, step: int, outputs: Any, accumulated: int) -> None:
        """A step is over: take its loss from what `training_step` returned."""
        self.unread += 1
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            # Lightning divides by the number of accumulated batches before it hands the loss on.
            self.tally.end(step, loss.detach() * accumulated if accumulated > 1 else loss)
            self.blind = tuple(_NO_FIRST if said == _NO_LOSS else said for said in self.blind)
        elif step == 0:
            self.miss(_NO_LOSS)

    def judge(self, trainer: pl.Trainer, last: bool = False) -> Report:
        """Read what waits on the device and judge all; all processes come here together."""
        self.tally.flush()
        self.unread = 0
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        seen = replace(
            self._first,
            steps=self.steps,
            loss={**self._first.loss, **self.tally.loss},
            skips_allowed=scaler is not None,
            bad_batches=tuple(sorted({*self._first.bad_batches, *self.tally.bad_batches})),
            lr=dict(self.tally.lr),
            small_eps=small_eps(trainer.optimizers),
        )
        found = self._agree(trainer, examine(seen, self.rules), last)
        return Report(found, seen, self.blind, self.attempts)

    def news(self, report: Report) -> list[Finding]:
        """The findings that no earlier report had, each kind of them once."""
        fresh = [f for f in report.findings if (f.detector, f.severity) not in self._said]
        self._said |= {(finding.detector, finding.severity) for finding in fresh}
        return fresh

    def miss(self, what: str) -> None:
        """Note what could not be read."""
        if what not in self.blind:
            self.blind += (what,)
