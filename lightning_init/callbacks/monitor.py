"""HealthMonitor: the first batch audited, the first steps watched, then gone.

Some of the first batches are read layer by layer, gradients where they are unscaled and not yet
clipped; the loss of every step stays on the device and is read many at once. Nothing that is read
changes a result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from lightning_init.callbacks.actions import OnUnhealthy, UnhealthyError, check_action, stop, warn
from lightning_init.callbacks.arguments import check_count
from lightning_init.callbacks.board import Board
from lightning_init.callbacks.logs import write_json
from lightning_init.callbacks.record import Record
from lightning_init.callbacks.schedule import BESIDE, EVERY, RARELY, ends_window, sampled, window
from lightning_init.callbacks.sendable import Sendable
from lightning_init.callbacks.several import inits_of
from lightning_init.callbacks.watch import Watch, compiled_frames, weight_samples
from lightning_init.health.attempts import Attempt
from lightning_init.health.registry import Profile, Rules, rules
from lightning_init.health.report import Report
from lightning_init.strategies.plan import Plan

Rescue = Callable[[pl.Trainer, pl.LightningModule, Any], tuple[Attempt, ...]]


class HealthMonitor(Sendable):
    """Audit the first batch, watch the first steps, say what is wrong and what to do.

    Beside an InitCallback it leaves the watching to that one, and `report` is the same.

    Args:
        monitor_steps: Training batches to watch layer by layer, at least 0; then every hook is
            gone.
        loss_steps: Training batches whose loss is watched, at least 0.
        on_unhealthy: What a finding of severity error does: `"warn"`, `"stop"` the training after
            the current batch, `"raise"` an `UnhealthyError`, or a function that is called with
            trainer, module and report.
        detectors: Names of the rules to use, or names with limits, `{"dead_units": {"limit": 0.9}}`;
            None for all of the profile; see `lightning-init list detectors`.
        profile: `"default"`, or `"textbook"` for absolute limits, which fire on most healthy nets.
        verbose: Whether findings and verdicts are said; they are in `report` anyhow.

    Raises:
        ValueError: If an argument is not legal.

    Example:
        >>> HealthMonitor(monitor_steps=50).monitor_steps
        50
    """

    def __init__(
        self,
        monitor_steps: int = 100,
        loss_steps: int = 1000,
        on_unhealthy: OnUnhealthy = "warn",
        detectors: Rules | None = None,
        profile: Profile = "default",
        verbose: bool = True,
    ) -> None:
        self.monitor_steps = check_count("monitor_steps", monitor_steps)
        self.loss_steps = check_count("loss_steps", loss_steps)
        check_action(on_unhealthy)
        if on_unhealthy == "rescue":
            raise ValueError(
                'on_unhealthy="rescue" re-initializes, which a HealthMonitor does not: use '
                'InitCallback("keep", on_unhealthy="rescue") in its place'
            )
        self.on_unhealthy: OnUnhealthy = on_unhealthy
        self.rules = rules(detectors, profile)
        self.verbose = verbose
        self.plan: Plan | None = None
        self._report: Report | None = None
        self._other: HealthMonitor | None = None  # the one that watches in place of this one
        # What an InitCallback puts in: called after the audit, on its errors, on later ones.
        self.announce: Callable[[Report | None], None] | None = None
        self.rescue: Rescue | None = None
        self.restart: Callable[[pl.Trainer], None] | None = None
        self._start()

    def _start(self) -> None:
        self.record = Record(self.rules)
        self._board = Board()
        self._watch: Watch | None = None
        self._step = -1  # batches of this watch, from 0; -1 is before the first
        self._window = -1  # likewise of updates
        self._watching = self._reading = False
        self._frames = compiled_frames()

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or one in another process, has a model of its own to watch.
        return {**self.__dict__, "_watch": None}

    @property
    def report(self) -> Report | None:
        """What was found so far, None before the first batch."""
        return self._report if self._other is None else self._other.report

    @property
    def steps(self) -> int:
        """Training batches until all is over."""
        return max(self.monitor_steps, self.loss_steps)

    @property
    def audits(self) -> bool:
        """Whether it is this monitor that looks at the first batch."""
        return self.monitor_steps > 0 and self._other is None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin anew."""
        self._let_go()  # of a fit that another callback's `on_exception` has broken off
        self._start()
        self._report, self._other = None, self._overruled(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watch unless this run goes on from trained weights, or an InitCallback watches."""
        if trainer.global_step == 0 and self._other is None:
            self.resume()

    def resume(self) -> None:
        """Watch although the Trainer has trained before: the module is a new one."""
        self._watching = self.steps > 0 and self._other is None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Audit before the first batch; read this one if it is sampled."""
        if not self._watching:
            return
        self._step += 1
        self._reading = self._is_read(trainer, pl_module, batch_idx)
        self.record.tally.begin(self._step, batch, trainer.optimizers)
        if self._step == 0 and self.monitor_steps:
            self._audit(trainer, pl_module, batch)
        elif self._reading:
            self._look(trainer, pl_module, batch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Read gradients: here they are unscaled and not yet clipped."""
        if self._reading and self._watch is not None:
            self._watch.update(optimizer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Judge what was read, act, and let go after the last watched step."""
        if not self._watching:
            return
        self.record.end(self._step, outputs, window(trainer, pl_module))
        if self._reading and self._watch is not None:
            reading = self._watch.read(self._step, trainer)
            if self._watch.error is not None:
                self.record.miss(f"step {self._step}: not all was read ({self._watch.error})")
            self.record.steps += (reading,)
            self._board.log_step(trainer, reading, self._watch.samples)
        last = self._step + 1 >= self.steps
        every = EVERY if self._step < self.monitor_steps else RARELY
        if last or self._reading or self.record.unread >= every:
            self._judge(trainer, pl_module, last)
        self._reading = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how it went if the training was shorter than the watch."""
        if self._watching:
            self._judge(trainer, pl_module, last=True)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave no hook behind when a fit is interrupted: no later hook would run."""
        self._let_go()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave no hook behind."""
        self._let_go()

    def look_again(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, plan: Plan | None
    ) -> Report:
        """Audit a batch before the first step, in place of an earlier audit."""
        self.plan = plan
        self.record.audit(pl_module, batch, plan)
        self._report = self.record.judge(trainer)
        return self._report

    def _audit(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        report = self.look_again(trainer, pl_module, batch, self.plan)
        if report.errors and self.rescue is not None:
            self.record.attempts = self.rescue(trainer, pl_module, batch)
            report = self._report = replace(self._report or report, attempts=self.record.attempts)
        steps = self.record.steps
        if self.announce is not None:
            self.announce(report if steps else None)
        if steps:
            samples = weight_samples(pl_module) if self._board.wants(trainer) else {}
            self._board.log_step(trainer, steps[-1], samples)
        self._board.log_verdict(trainer, report)
        self._act(trainer, pl_module, report, before=True)

    def _judge(self, trainer: pl.Trainer, pl_module: pl.LightningModule, last: bool) -> None:
        if last and self._watch is not None and not self._watch.stepped:
            self.record.miss(
                "gradients after the first batch: no optimizer steps where they are seen"
            )
        report = self._report = self.record.judge(trainer, last)
        self._board.log_verdict(trainer, report)
        self._act(trainer, pl_module, report)
        if last:
            self._let_go()
            self._write(trainer, report)
            if self.verbose and not report.findings:
                rank_zero_info(f"lightning_init: {report.verdict()}")

    def _is_read(self, trainer: pl.Trainer, module: pl.LightningModule, batch_idx: int) -> bool:
        """Whether this batch is one of those that are read: the last of a sampled update."""
        count = window(trainer, module)
        if not ends_window(batch_idx, count, trainer.is_last_batch):
            return False
        self._window += 1
        if not 0 < self._step < self.monitor_steps:
            return False
        is_last = self._step + count >= self.monitor_steps
        return is_last or sampled(self._window, self.monitor_steps)

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        if self._watch is None:
            samples = self._board.wants(trainer)
            self._watch = Watch(pl_module, self.plan, samples, self._frames)
        watch = self._watch
        watch.begin(trainer, window(trainer, pl_module))
        if not watch.compiled:
            watch.start()
        elif self._window in BESIDE:
            try:
                watch.beside(batch)
            except Exception as error:
                why = f"a compiled model could not be read eagerly ({error})"
                self.record.miss(f"activations after the first batch: {why}")

    def _act(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        report: Report,
        before: bool = False,
    ) -> None:
        fresh, action = self.record.news(report), self.on_unhealthy
        broken = any(finding.severity == "error" for finding in fresh)
        if broken and (action == "raise" or (action == "rescue" and before)):
            self._write(trainer, report)
            raise UnhealthyError(report)
        if self.verbose:
            warn(fresh)
        if broken and callable(action):
            action(trainer, pl_module, report)
        elif broken and action in ("stop", "rescue"):
            if action == "rescue" and self.restart is not None:
                self.restart(trainer)
            stop(trainer, self.verbose)

    def _write(self, trainer: pl.Trainer, report: Report) -> None:
        write_json(trainer, "health.json", report.to_dict())

    def _let_go(self) -> None:
        self._watching = self._reading = False
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _overruled(self, trainer: pl.Trainer) -> HealthMonitor | None:
        """The monitor of the last InitCallback beside this one, which watches in its place."""
        inner = [each.monitor for each in inits_of(trainer) if not each.yields]
        watching: list[HealthMonitor] = [one for one in inner if one.steps]
        if not watching or watching[-1] is self:
            return None
        ours, other = self.on_unhealthy, watching[-1].on_unhealthy
        if ours != other:
            this = "earlier one" if any(one is self for one in inner) else "HealthMonitor"
            rank_zero_warn(
                f"lightning_init: the InitCallback watches in place of this {this}, with "
                f"on_unhealthy={other!r}: give {ours!r} to the InitCallback"
            )
        return watching[-1]
