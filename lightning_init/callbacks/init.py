"""InitCallback: initialize a LightningModule inside its Trainer, then watch the first steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import save_file
from torch.optim import Optimizer

from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.provenance import record_of
from lightning_init.callbacks.display import render
from lightning_init.callbacks.forward import NoBatchError, first_batch, training_forward
from lightning_init.callbacks.monitor import HealthMonitor, OnUnhealthy, run_folder
from lightning_init.callbacks.placement import after, builds_later, was_rewritten
from lightning_init.health.report import Report
from lightning_init.strategies.apply import carry_out, fingerprint
from lightning_init.strategies.plan import Forward, Plan
from lightning_init.strategies.planning import StrategyLike, make_plan, resolve
from lightning_init.strategies.registry import Strategy
from lightning_init.strategies.seeds import Seed, resolve_seed
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
        self.spec = _spec(strategy, params, overrides, seed)
        self.strategy: StrategyLike = strategy if self.spec is None else self.spec
        self.seed = seed if self.spec is None else self.spec.seed
        resolve(self.strategy)
        self.scope = scope
        self.save_init = None if save_init is None else Path(save_init)
        if self.save_init is not None and self.save_init.suffix != ".safetensors":
            raise ValueError(f"save_init must name a .safetensors file, but got {save_init!r}")
        self.verbose = verbose
        self._monitor = HealthMonitor(monitor_steps, loss_steps, on_unhealthy, verbose=verbose)
        self._monitor.announce = self._announce
        self._undo: Callable[[], None] | None = None
        self._applied: Seed | None = None
        self._missing = ""  # why no forward pass was seen yet
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
    def plan(self) -> Plan | None:
        """What was applied, None before `setup` or if nothing was to be done."""
        return self._monitor.plan

    @property
    def report(self) -> Report | None:
        """What the audit and the monitor found so far."""
        return self._monitor.report

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Initialize what exists; the rest as soon as the module has built it."""
        if stage != "fit":
            return
        self._monitor.plan, self._monitor.report = None, None
        self._applied, self._missing, self.fingerprint = None, "", None
        if record_of(pl_module).trained:
            self._say("the model has been trained here before: its weights are left alone")
            return
        if (later := self._overruled(trainer)) is not None:
            self._say(f"yields to {later}, which comes later in the list of callbacks")
            return
        given = trainer.strategy.broadcast(self.seed)
        self._applied = trainer.strategy.broadcast(resolve_seed(given))
        hook = builds_later(pl_module)
        if hook is None:
            self._initialize(pl_module, self._forward(trainer, pl_module))
            return
        # What exists now may be copied by other callbacks; the whole is done when it is built.
        self._missing = "the module builds layers later"
        self._initialize(pl_module, None, complete=False)
        self._undo = after(
            pl_module, hook, lambda: self._initialize(pl_module, self._forward(trainer, pl_module))
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Initialize what was on the meta device at `setup`."""
        if self._applied is not None and self.plan is None:
            self._initialize(pl_module, None)
        self._monitor.on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell a fresh start from a resumed run, now that a checkpoint has been restored."""
        self._monitor.on_train_start(trainer, pl_module)
        if self.plan is None or trainer.global_step == 0:
            return
        if was_rewritten(pl_module) or not any(entry.written for entry in self.plan):
            self._say("resumed: the checkpoint's weights are kept, nothing is watched")
            self._monitor.plan, self._applied = None, None
        else:
            self._monitor.resume()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first batch: finish with its help what had no batch, then audit and report."""
        first = self._applied is not None and self.fingerprint is None
        if first and self._missing:
            self._complete(pl_module, training_forward(pl_module, batch))
        if first:
            self._seal(trainer, pl_module)
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
        self._remove_wrapper()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave no hook and no wrapper behind."""
        self._monitor.teardown(trainer, pl_module, stage)
        self._remove_wrapper()

    def _forward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Forward | None:
        try:
            batch = first_batch(trainer, pl_module)
        except NoBatchError as error:
            self._missing = str(error)
            return None
        self._missing = ""
        return training_forward(pl_module, batch)

    def _initialize(
        self, pl_module: pl.LightningModule, forward: Forward | None, complete: bool = True
    ) -> None:
        assert self._applied is not None
        if any(tensor.is_meta for _, tensor in named_tensors(pl_module)):
            return  # on_fit_start comes back to it
        self._undo = None if complete else self._undo
        try:
            plan = self._make_plan(pl_module, forward)
        except ValueError:
            if complete:
                raise
            return  # a pattern may name a layer that is still to be built
        self._carry_out(pl_module, plan, forward)

    def _make_plan(self, pl_module: pl.LightningModule, forward: Forward | None) -> Plan:
        try:
            return make_plan(pl_module, self.strategy, forward=forward, scope=self.scope)
        except Exception as error:
            if forward is None:
                raise
            # The user's training_step may need what only training provides.
            self._missing = f"training_step could not run yet ({error})"
        return make_plan(pl_module, self.strategy, scope=self.scope)

    def _carry_out(
        self, pl_module: pl.LightningModule, plan: Plan, forward: Forward | None
    ) -> None:
        assert self._applied is not None
        if plan.calibrate_ is not None and not plan.traced:
            plan, forward = replace(plan, calibrate_=None), None
            self._missing = f"not calibrated: {self._missing or 'no batch was at hand'}"
        self._monitor.plan = carry_out(pl_module, plan, self._applied.value, forward)

    def _complete(self, pl_module: pl.LightningModule, forward: Forward) -> None:
        """With the first training batch: what no earlier forward pass could tell."""
        before, self._missing = self.plan, ""
        plan = self._make_plan(pl_module, forward)
        if plan.calibrate_ is None and before is not None and before.entries == plan.entries:
            return
        self._carry_out(pl_module, plan, forward)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            with torch.no_grad():  # each process saw another batch
                for _, tensor in named_tensors(pl_module):
                    torch.distributed.broadcast(tensor, 0)

    def _seal(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fingerprint, file and saved copy of the weights that training starts from."""
        assert self._applied is not None
        self.fingerprint = fingerprint(pl_module)
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        if self.save_init is not None:
            self.save_init.parent.mkdir(parents=True, exist_ok=True)
            values = {n[0]: t.detach().cpu().clone() for n, t in named_tensors(pl_module)}
            save_file(values, self.save_init, metadata={"fingerprint": self.fingerprint})
        if folder is not None and self.plan is not None:
            folder.mkdir(parents=True, exist_ok=True)
            data = {
                "spec": None if self.spec is None else self.spec.to_dict(),
                "seed": self._applied.value,
                "seed_source": self._applied.source,
                "fingerprint": self.fingerprint,
                "plan": self.plan.to_dict(),
            }
            text = json.dumps(data, indent=1)
            (folder / "init.json").write_text(text, encoding="utf-8")

    def _announce(self, report: Report | None) -> None:
        """One table: what was drawn, where and why, beside what it does; then the verdict."""
        if self._applied is None or self.plan is None or not self.verbose:
            return
        rank_zero_info(render(self.plan, report, self._header()))
        if report is not None and not report.findings:
            self._say(report.verdict())

    def _header(self) -> str:
        assert self._applied is not None
        name = self.spec.strategy if self.spec else "a function"
        params = self.spec.params if self.spec else {}
        chosen = f"{name}({', '.join(f'{k}={v}' for k, v in params.items())})" if params else name
        late = f"; {self._missing}" if self._missing else ""
        return (
            f"lightning_init: {chosen}, seed {self._applied.value} ({self._applied.source}){late}"
        )

    def _overruled(self, trainer: pl.Trainer) -> str | None:
        """The InitCallback that comes later in the list and means some of the same tensors."""
        callbacks: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
        after_me = callbacks[callbacks.index(self) + 1 :] if self in callbacks else []
        for other in after_me:
            if isinstance(other, InitCallback) and _overlap(self.scope, other.scope):
                return f"InitCallback({_name(other)})"
        return None

    def _remove_wrapper(self) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None

    def _say(self, text: str) -> None:
        if self.verbose:
            rank_zero_info(f"lightning_init: {text}")


def _spec(
    strategy: Any, params: Mapping[str, Any] | None, overrides: Mapping[str, Any] | None, seed: Any
) -> InitSpec | None:
    if isinstance(strategy, str):
        return InitSpec(strategy, params or {}, overrides or {}, seed)
    if params or overrides:
        raise ValueError(
            "params and overrides go with a strategy's name; put them into the InitSpec instead"
        )
    if isinstance(strategy, InitSpec):
        if seed is None:
            return strategy
        return InitSpec(strategy.strategy, strategy.params, strategy.overrides, seed)
    InitSpec(seed=seed)  # a seed is checked alike for all kinds of strategies
    return None


def _overlap(one: str | list[str], two: str | list[str]) -> bool:
    """Whether two scopes can mean the same tensor; patterns are taken to differ unless equal."""
    whole = ("untrained", "all")
    if one in whole or two in whole:
        return True
    first = {one} if isinstance(one, str) else set(one)
    return bool(first & ({two} if isinstance(two, str) else set(two)))


def _name(callback: InitCallback) -> str:
    return repr(callback.spec.strategy if callback.spec else "a function")
