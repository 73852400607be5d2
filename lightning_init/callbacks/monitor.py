"""HealthMonitor: the first batch audited, the first steps watched, then gone.

Hooks are on the model from the start to the end of a sampled training batch only; gradients are read where they are unscaled and not yet clipped. Nothing that is
read changes a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_init.architecture.arguments import unknown
from lightning_init.architecture.probe import Probe, euclidean, weights
from lightning_init.architecture.readings import Readings, StepReading
from lightning_init.callbacks.forward import training_forward
from lightning_init.callbacks.logs import histogram_loggers, log_step, write_json
from lightning_init.callbacks.schedule import sampled
from lightning_init.health.audit import audit
from lightning_init.health.findings import Finding
from lightning_init.health.registry import Profile, Rules, examine, rules
from lightning_init.health.report import Report
from lightning_init.strategies.plan import Plan

OnUnhealthy = Literal["warn", "stop", "raise"]
_ACTIONS: tuple[OnUnhealthy, ...] = ("warn", "stop", "raise")
_EVERY = 10  # losses after the watched steps are moved to the host in such portions


class UnhealthyError(RuntimeError):
    """A finding of severity error with `on_unhealthy="raise"`; `report` has all of it."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"unhealthy: {report.verdict()}")
        self.report = report


class UnhealthyWarning(UserWarning):
    """A finding during training."""


class HealthMonitor(Callback):
    """Audit the first batch, watch the first steps, say what is wrong and what to do.

    Args:
        monitor_steps: Training batches to watch layer by layer, at least 0; then every hook is
            gone.
        loss_steps: Training batches whose loss is watched, at least 0.
        on_unhealthy: What a finding of severity error does: `"warn"`, `"stop"` the training after
            the current batch, or `"raise"` an `UnhealthyError`.
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
        for name, steps in (("monitor_steps", monitor_steps), ("loss_steps", loss_steps)):
            if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
                raise ValueError(f"`{name} >= 0` must hold, but got {name}={steps!r}")
        if on_unhealthy not in _ACTIONS:
            raise ValueError(unknown("on_unhealthy", str(on_unhealthy), _ACTIONS))
        self.monitor_steps, self.loss_steps = monitor_steps, loss_steps
        self.on_unhealthy: OnUnhealthy = on_unhealthy
        self.rules = rules(detectors, profile)
        self.verbose = verbose
        self.report: Report | None = None
        self.plan: Plan | None = None
        self.announce: Callable[[Report | None], None] | None = None  # called after the audit
        self._start()

    def _start(self) -> None:
        self._probe: Probe | None = None
        self._step = -1  # batches of this watch, from 0; -1 is before the first
        self._watching = False
        self._steps: tuple[StepReading, ...] = ()
        self._loss: dict[int, float] = {}
        self._waiting: list[tuple[int, Tensor]] = []
        self._gradients: dict[int, Tensor] = {}
        self._blind: tuple[str, ...] = ()
        self._trained = False
        self._said: set[tuple[str, str]] = set()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin anew."""
        self._start()
        if self.monitor_steps and _is_compiled(pl_module):
            self._blind = ("activations: not read in a compiled model",)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watch unless this run goes on from trained weights."""
        self._watching = bool(self.monitor_steps or self.loss_steps) and trainer.global_step == 0

    def resume(self) -> None:
        """Watch although the Trainer has trained before: the module is a new one."""
        self._watching = bool(self.monitor_steps or self.loss_steps)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Audit before the first batch; read this one if it is sampled."""
        if not self._watching:
            return
        self._step += 1
        if self._step == 0 and self.monitor_steps:
            self._audit(trainer, pl_module, batch)
        elif sampled(self._step, self.monitor_steps) and not _is_compiled(pl_module):
            self._probe = Probe(pl_module, sample=bool(histogram_loggers(trainer)))
            self._probe.active = True

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Read gradients: here they are unscaled and not yet clipped."""
        if not self._watching or not sampled(self._step, self.monitor_steps):
            return
        scale = _fused_scale(trainer, optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._gradients[id(parameter)] = euclidean(parameter.grad) / scale

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
        self._read_loss(trainer, outputs)
        is_sampled = self._step > 0 and sampled(self._step, self.monitor_steps)
        samples = self._probe.samples if self._probe is not None else {}
        if is_sampled:
            self._read_step(pl_module)
        self._remove_hooks()
        last = self._step + 1 >= max(self.monitor_steps, self.loss_steps)
        if last or self._step < self.monitor_steps or len(self._waiting) >= _EVERY:
            self._flush_losses()
            self._judge(trainer)
        if is_sampled:
            log_step(trainer, pl_module, self._steps[-1], samples)
        self._gradients = {}
        if last:
            self._finish(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how it went if the training was shorter than the watch."""
        if self._watching:
            self._flush_losses()
            self._judge(trainer)
            self._finish(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave no hook behind when a fit is interrupted: no later hook would run."""
        self._watching = False
        self._remove_hooks()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave no hook behind."""
        self._watching = False
        self._remove_hooks()

    def _audit(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        if any(is_lazy(parameter) for parameter in pl_module.parameters()):
            self._blind += ("first batch: lazy layers have no weights yet",)
            self._announce(None)
            self._judge(trainer)
            return
        try:
            report = audit(pl_module, training_forward(pl_module, batch), plan=self.plan)
        except Exception as error:
            self._blind += (f"first batch: the audit could not run ({error})",)
            self._announce(None)
            self._judge(trainer)
            return
        self._steps = report.readings.steps
        self._trained = report.readings.trained
        if not self._loss and 0 in report.readings.loss:
            self._loss[0] = report.readings.loss[0]
        self._announce(report)
        self._judge(trainer)
        log_step(trainer, pl_module, self._steps[-1], {})

    def _announce(self, report: Report | None) -> None:
        if self.announce is not None:
            self.announce(report)

    def _read_loss(self, trainer: pl.Trainer, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            # Lightning divides by the number of accumulated batches before it hands the loss on.
            self._waiting.append((self._step, loss.detach() * trainer.accumulate_grad_batches))
        elif self._step == 0:
            self._blind += ("loss: this training_step returns none",)

    def _read_step(self, pl_module: pl.LightningModule) -> None:
        layers = self._probe.layers() if self._probe is not None else ()
        read = weights(pl_module, None, self._gradients)
        self._steps += (StepReading(self._step, layers, read),)

    def _flush_losses(self) -> None:
        if self._waiting:
            values = torch.stack([loss.float() for _, loss in self._waiting]).tolist()
            self._loss.update(zip([step for step, _ in self._waiting], values, strict=True))
            self._waiting = []

    def _judge(self, trainer: pl.Trainer) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        seen = Readings(self._steps, dict(self._loss), scaler is not None, self._trained)
        self.report = Report(examine(seen, self.rules), seen, self._blind)
        # What holds for one process must be done by all of them.
        if trainer.world_size > 1:
            broken = trainer.strategy.reduce_boolean_decision(bool(self.report.errors), all=False)
        else:
            broken = bool(self.report.errors)
        fresh = [f for f in self.report.findings if (f.detector, f.severity) not in self._said]
        if fresh or (broken and not self._said):
            self._said |= {(finding.detector, finding.severity) for finding in fresh}
            self._act(trainer, self.report, fresh, broken)

    def _act(self, trainer: pl.Trainer, report: Report, fresh: list[Finding], broken: bool) -> None:
        if broken and self.on_unhealthy == "raise":
            self._write(trainer)
            raise UnhealthyError(report)
        loud = [finding for finding in fresh if finding.severity != "info"]
        if loud:
            self._warn(loud[0], len(loud) - 1)
        if broken and self.on_unhealthy == "stop":
            if self.verbose:
                rank_zero_info("lightning_init: stopping after this batch")
            trainer.should_stop = True

    def _warn(self, finding: Finding, others: int) -> None:
        if not self.verbose:
            return
        more = f"\n  and {others} more in the report" if others else ""
        rank_zero_warn(f"lightning_init: {finding}{more}", category=UnhealthyWarning)

    def _finish(self, trainer: pl.Trainer) -> None:
        self._watching = False
        self._remove_hooks()
        self._write(trainer)
        if self.verbose and self.report is not None and not self.report.findings:
            rank_zero_info(f"lightning_init: {self.report.verdict()}")

    def _write(self, trainer: pl.Trainer) -> None:
        if self.report is not None:
            write_json(trainer, "health.json", self.report.to_dict())

    def _remove_hooks(self) -> None:
        if self._probe is not None:
            self._probe.remove()
            self._probe = None


def _is_compiled(module: pl.LightningModule) -> bool:
    return bool(getattr(module, "_compiler_ctx", None)) or any(
        hasattr(child, "_orig_mod") or getattr(child, "_compiled_call_impl", None) is not None
        for child in module.modules()
    )


def _fused_scale(trainer: pl.Trainer, optimizer: Optimizer) -> float:
    """What the gradients are still multiplied by: optimizers that unscale inside their step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())
