"""InitCallback: initialize a LightningModule inside its Trainer, then watch the first steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from lightning_init.architecture.provenance import record_of
from lightning_init.callbacks.actions import OnUnhealthy, check_action
from lightning_init.callbacks.arguments import changed, check_count, spec_of
from lightning_init.callbacks.forward import training_forward
from lightning_init.callbacks.later import take_off
from lightning_init.callbacks.monitor import HealthMonitor
from lightning_init.callbacks.placement import Placement, was_rewritten
from lightning_init.callbacks.rescue import Rescue, check_ladder, rungs
from lightning_init.callbacks.restart import restart
from lightning_init.callbacks.sealed import Origin, table
from lightning_init.callbacks.sendable import Sendable
from lightning_init.callbacks.several import inits_of, left_over
from lightning_init.health.attempts import Attempt
from lightning_init.health.registry import Profile, Rules
from lightning_init.health.report import Report
from lightning_init.strategies.plan import Plan
from lightning_init.strategies.planning import StrategyLike, check_scope, resolve
from lightning_init.strategies.registry import Strategy
from lightning_init.strategies.seeds import resolve_seed
from lightning_init.strategies.spec import InitSpec


class InitCallback(Sendable):
    """Initialize the model at `setup`, audit the first batch, watch the first steps.

    Frozen, loaded and trained weights are left alone; a restored checkpoint wins; a second `fit`
    changes nothing. The global random state and the order of the data stay as they are.

    Args:
        strategy: A name (see `lightning-init list`), an `InitSpec`, a `Strategy`, or a function
            `ParamInfo -> Distribution`.
        params: The strategy's parameters, e.g. `{"gain": 1.4}`; every strategy takes `scale`.
        overrides: `"role:embedding"` or a glob on names -> a strategy's name or a spec.
        seed: 0 to 2^63 - 1; None takes the spec's, else the one of `seed_everything`, else a new
            one, which is printed.
        scope: `"untrained"`, `"all"`, or glob patterns on parameter names.
        monitor_steps: Training batches to watch layer by layer, at least 0.
        loss_steps: Training batches whose loss is watched, at least 0.
        on_unhealthy: What a finding of severity error does: `"warn"`, `"stop"` the training after
            the current batch, `"raise"` an `UnhealthyError`, `"rescue"`, or a function that is
            called with trainer, module and report. Rescue initializes anew before the first step
            until the audit has no error, or raises; an error later stops the run and prints the
            command that starts it with the next initialization.
        save_init: A `.safetensors` file for the initial weights, None for none.
        verbose: Whether the table and the verdict are printed.
        ladder: What a rescue tries, in order: strategies or specs; None for `recommend`'s choice,
            Xavier, Kaiming and scaled residual branches.
        max_rescues: How many of them it tries at most, at least 0.
        detectors: Names of the rules to use, or names with limits; see `HealthMonitor`.
        profile: `"default"`, or `"textbook"` for absolute limits.

    Raises:
        ValueError: If an argument is not legal; nothing has been changed then.

    Example:
        >>> callback = InitCallback("kaiming_normal", {"mode": "fan_out"}, seed=3)
        >>> callback.spec.params
        {'mode': 'fan_out'}
    """

    def __init__(
        self,
        strategy: str | InitSpec | Strategy | Callable[..., Any] = "auto",
        params: dict[str, Any] | None = None,
        overrides: dict[str, Any] | None = None,
        seed: int | None = None,
        scope: str | list[str] = "untrained",
        monitor_steps: int = 100,
        loss_steps: int = 1000,
        on_unhealthy: OnUnhealthy = "warn",
        save_init: str | None = None,
        verbose: bool = True,
        ladder: list[str | InitSpec] | None = None,
        max_rescues: int = 3,
        detectors: Rules | None = None,
        profile: Profile = "default",
    ) -> None:
        self._given = changed(InitCallback, locals())
        self.spec = spec_of(strategy, params, overrides, seed)
        self.strategy: StrategyLike = strategy if self.spec is None else self.spec
        self.seed = seed if self.spec is None else self.spec.seed
        resolve(self.strategy)
        check_scope(scope)
        self.scope: str | list[str] = scope
        self.save_init = None if save_init is None else Path(save_init)
        if self.save_init is not None and self.save_init.suffix != ".safetensors":
            raise ValueError(f"save_init must name a .safetensors file, but got {save_init!r}")
        self.verbose = verbose
        self.ladder = check_ladder(ladder)
        self.max_rescues = check_count("max_rescues", max_rescues)
        check_action(on_unhealthy)
        rescues = on_unhealthy == "rescue"
        action: OnUnhealthy = "raise" if rescues else on_unhealthy
        self.monitor = HealthMonitor(monitor_steps, loss_steps, action, detectors, profile, verbose)
        self.monitor.announce = self._announce
        if rescues:
            self.monitor.on_unhealthy = "rescue"
            self.monitor.rescue, self.monitor.restart = self._rescue, self._restart
        self.told_by = ""  # an environment variable, where the user has not listed this callback
        self._placement: Placement | None = None  # None where there is nothing to do
        self.yields = False  # to another InitCallback, which means all that this one does
        self.origin = Origin(self.name, scope, self.save_init)

    @classmethod
    def from_spec(cls, spec: InitSpec, **arguments: Any) -> InitCallback:
        """The callback for a spec; `arguments` as in the constructor, but for the spec's."""
        return cls(spec, **arguments)

    @classmethod
    def from_file(cls, path: str | Path, **arguments: Any) -> InitCallback:
        """The callback for a file that `lightning-init search` or `InitSpec.save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds no spec.
        """
        return cls(InitSpec.load(path), **arguments)

    @property
    def name(self) -> str:
        """The strategy's name."""
        return self.spec.strategy if self.spec else "a function"

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the weights that the run, or the one it resumes, started from; else None."""
        return None if self.origin.known is None else self.origin.known.fingerprint

    @property
    def plan(self) -> Plan | None:
        """What was applied, None before `setup` or if nothing was to be done."""
        return self._placement.plan if self._placement is not None else None

    @property
    def report(self) -> Report | None:
        """What the audit and the monitor found so far."""
        return self.monitor.report

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Initialize what exists; the rest as soon as the module has built it."""
        if stage != "fit":
            return
        self.monitor.plan = None
        self._placement = None
        self.origin.forget()
        self.yields = False
        inits = inits_of(trainer)
        if self in inits[:1] or self not in inits:
            take_off(pl_module)
        if record_of(pl_module).trained:
            self._say("the model has been trained here before: its weights are left alone")
            return
        later = inits[inits.index(self) + 1 :] if self in inits else ()
        strategy, said = left_over(self, later)
        for text in said:
            self._say(text)
        if strategy is None:
            self.yields = True
            return
        self.origin.check(trainer)
        given = trainer.strategy.broadcast(self.seed)
        seed = trainer.strategy.broadcast(resolve_seed(given))
        self._placement = Placement(
            strategy, self.scope, seed, self.monitor.on_unhealthy == "rescue"
        )
        self._placement.place(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Initialize what was on the meta device at `setup`."""
        if self._placement is not None:
            self._placement.catch_up(trainer, pl_module)
        self.monitor.on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell a fresh start from a resumed run, now that a checkpoint has been restored."""
        if self.yields:  # the one that comes later watches, too
            return
        self.monitor.on_train_start(trainer, pl_module)
        if self._placement is None or trainer.global_step == 0:
            return
        # Without a plan nothing has been written yet: lazy layers got their shapes from the file.
        if was_rewritten(pl_module) or not any(entry.written for entry in self.plan or ()):
            began = f"; it started from {self.origin.before}" if self.origin.before else ""
            self._say(f"resumed: the checkpoint's weights are kept, nothing is watched{began}")
            self._placement = None
        else:
            self.monitor.resume()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first batch: finish with its help what had no batch, then audit and report."""
        if self._placement is not None and self.origin.start is None:
            self._placement.finish(pl_module, training_forward(pl_module, batch))
            self._seal(trainer, pl_module, self._placement)
            if not self.monitor.audits:
                self._announce(None)
        self.monitor.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Read gradients."""
        self.monitor.on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Judge what was read; from now on the model counts as trained."""
        record_of(pl_module).trained = True
        self.monitor.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how it went."""
        self.monitor.on_train_end(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave no hook and no wrapper behind."""
        self.monitor.on_exception(trainer, pl_module, exception)
        if self._placement is not None:
            self._placement.let_go()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave no hook and no wrapper behind."""
        self.monitor.teardown(trainer, pl_module, stage)
        if self._placement is not None:
            self._placement.let_go()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note what the run started from."""
        self.origin.save(checkpoint)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Know what the run started from."""
        self.origin.load(checkpoint)

    def _seal(self, trainer: pl.Trainer, pl_module: pl.LightningModule, placed: Placement) -> None:
        """Note the weights that training starts from, and write them down."""
        self.origin.seal(trainer, pl_module, placed)
        self.monitor.plan = self.origin.whole_plan(trainer)

    def _rescue(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any
    ) -> tuple[Attempt, ...]:
        """Initialize anew until the audit is healthy; files and fingerprint are the last one's."""
        placed, report = self._placement, self.report
        if placed is None or placed.plan is None or report is None:
            return ()
        look = partial(self.monitor.look_again, trainer, pl_module, batch)
        steps = rungs(self.ladder, [placed.strategy], placed.plan)
        # The batch that the first initialization has seen, where that can be had.
        forward = placed.forward(trainer, pl_module) or training_forward(pl_module, batch)
        rescue = Rescue(placed, look, self._say)
        attempts = rescue(trainer, pl_module, forward, report, steps, self.max_rescues)
        self._seal(trainer, pl_module, placed)
        return attempts

    def _restart(self, trainer: pl.Trainer) -> None:
        """After the first step it is too late: say how to start again with the next spec."""
        if (placed := self._placement) is not None and (report := self.report) is not None:
            arguments = {**self._given, "seed": self.seed}
            self._say(restart(trainer, placed, report, self.ladder, arguments))

    def _announce(self, report: Report | None) -> None:
        """One table: what was drawn, where and why, beside what it does; then the verdict."""
        placed = self._placement
        if placed is None or placed.plan is None or not self.verbose:
            return
        rank_zero_info(table(placed, report, self.name))
        if report and not report.findings:
            self._say(report.verdict())

    def _say(self, text: str) -> None:
        if self.verbose:
            rank_zero_info(f"lightning_init: {text}")
