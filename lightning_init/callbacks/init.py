"""InitCallback: initialize a LightningModule inside its Trainer, then watch the first steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from lightning_init.architecture.provenance import record_of
from lightning_init.callbacks.arguments import overlap, spec_of
from lightning_init.callbacks.display import render
from lightning_init.callbacks.forward import training_forward
from lightning_init.callbacks.logs import save_weights, write_json
from lightning_init.callbacks.monitor import HealthMonitor, OnUnhealthy
from lightning_init.callbacks.placement import Placement, was_rewritten
from lightning_init.health.report import Report
from lightning_init.strategies.apply import fingerprint
from lightning_init.strategies.plan import Plan
from lightning_init.strategies.planning import StrategyLike, check_scope, resolve
from lightning_init.strategies.registry import Strategy
from lightning_init.strategies.seeds import resolve_seed
from lightning_init.strategies.spec import InitSpec


class InitCallback(Callback):
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
        on_unhealthy: `"warn"`, `"stop"` or `"raise"` on a finding of severity error.
        save_init: A `.safetensors` file for the initial weights, None for none.
        verbose: Whether the table and the verdict are printed.

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
    ) -> None:
        self.spec = spec_of(strategy, params, overrides, seed)
        self.strategy: StrategyLike = strategy if self.spec is None else self.spec
        self.seed = seed if self.spec is None else self.spec.seed
        resolve(self.strategy)
        check_scope(scope)
        self.scope = scope
        self.save_init = None if save_init is None else Path(save_init)
        if self.save_init is not None and self.save_init.suffix != ".safetensors":
            raise ValueError(f"save_init must name a .safetensors file, but got {save_init!r}")
        self.verbose = verbose
        self._monitor = HealthMonitor(monitor_steps, loss_steps, on_unhealthy, verbose=verbose)
        self._monitor.announce = self._announce
        self._placement: Placement | None = None  # None where nothing is to be initialized
        self._yields = False
        self.fingerprint: str | None = None

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
    def plan(self) -> Plan | None:
        """What was applied, None before `setup` or if nothing was to be done."""
        return self._placement.plan if self._placement is not None else None

    @property
    def report(self) -> Report | None:
        """What the audit and the monitor found so far."""
        return self._monitor.report

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Initialize what exists; the rest as soon as the module has built it."""
        if stage != "fit":
            return
        self._monitor.plan, self._monitor.report = None, None
        self._placement, self.fingerprint = None, None
        self._yields = False
        if record_of(pl_module).trained:
            self._say("the model has been trained here before: its weights are left alone")
            return
        if (later := self._overruled(trainer)) is not None:
            self._say(f"yields to {later}, which comes later in the list of callbacks")
            self._yields = True
            return
        given = trainer.strategy.broadcast(self.seed)
        seed = trainer.strategy.broadcast(resolve_seed(given))
        self._placement = Placement(self.strategy, self.scope, seed)
        self._placement.place(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Initialize what was on the meta device at `setup`."""
        if self._placement is not None:
            self._placement.catch_up(pl_module)
        self._monitor.on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell a fresh start from a resumed run, now that a checkpoint has been restored."""
        if self._yields:  # the one that comes later watches, too
            return
        self._monitor.on_train_start(trainer, pl_module)
        if self._placement is None or trainer.global_step == 0:
            return
        # Without a plan nothing has been written yet: lazy layers got their shapes from the file.
        if was_rewritten(pl_module) or not any(entry.written for entry in self.plan or ()):
            self._say("resumed: the checkpoint's weights are kept, nothing is watched")
            self._placement = None
        else:
            self._monitor.resume()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first batch: finish with its help what had no batch, then audit and report."""
        if self._placement is not None and self.fingerprint is None:
            self._placement.finish(pl_module, training_forward(pl_module, batch))
            self._monitor.plan = self._placement.plan
            self._seal(trainer, pl_module, self._placement)
            if not self._monitor.monitor_steps:
                self._announce(None)
        self._monitor.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Read gradients."""
        self._monitor.on_before_optimizer_step(trainer, pl_module, optimizer)

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
        self._monitor.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how it went."""
        self._monitor.on_train_end(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave no hook and no wrapper behind."""
        self._monitor.on_exception(trainer, pl_module, exception)
        if self._placement is not None:
            self._placement.let_go()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave no hook and no wrapper behind."""
        self._monitor.teardown(trainer, pl_module, stage)
        if self._placement is not None:
            self._placement.let_go()

    def _seal(self, trainer: pl.Trainer, pl_module: pl.LightningModule, placed: Placement) -> None:
        """Fingerprint, file and saved copy of the weights that training starts from."""
        self.fingerprint = fingerprint(pl_module)
        data = {
            "spec": None if self.spec is None else self.spec.to_dict(),
            "seed": placed.seed.value,
            "seed_source": placed.seed.source,
            "fingerprint": self.fingerprint,
            "plan": None if placed.plan is None else placed.plan.to_dict(),
        }
        write_json(trainer, "init.json", data)
        if self.save_init is not None and trainer.is_global_zero:
            save_weights(pl_module, self.save_init, {"fingerprint": self.fingerprint})

    def _announce(self, report: Report | None) -> None:
        """One table: what was drawn, where and why, beside what it does; then the verdict."""
        placed = self._placement
        if placed is None or placed.plan is None or not self.verbose:
            return
        rank_zero_info(render(placed.plan, report, self._header(placed)))
        if report is not None and not report.findings:
            self._say(report.verdict())

    def _header(self, placed: Placement) -> str:
        chosen = str(self.spec or self.name)
        late = f"; {placed.missing}" if placed.missing else ""
        return f"lightning_init: {chosen}, seed {placed.seed.value} ({placed.seed.source}){late}"

    def _overruled(self, trainer: pl.Trainer) -> str | None:
        """The InitCallback that comes later in the list and means some of the same tensors."""
        callbacks: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
        after_me = callbacks[callbacks.index(self) + 1 :] if self in callbacks else []
        for other in after_me:
            if isinstance(other, InitCallback) and overlap(self.scope, other.scope):
                return f"InitCallback({other.name!r})"
        return None

    def _say(self, text: str) -> None:
        if self.verbose:
            rank_zero_info(f"lightning_init: {text}")
