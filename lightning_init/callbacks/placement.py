"""When weights may change inside a Trainer.

`Callback.setup` comes before the module's own `setup` and `configure_model` and before a
checkpoint is restored. So weights are written there, and again right after the module has built
the rest, through a wrapper that removes itself; a checkpoint is restored later and wins.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_init.architecture.names import named_states, named_tensors, unwrap
from lightning_init.architecture.provenance import note_empty, record_of
from lightning_init.architecture.sharded import any_sharded, is_flat, is_sharded
from lightning_init.callbacks.agree import agree_that
from lightning_init.callbacks.built import Built
from lightning_init.callbacks.forward import NoBatchError, first_batch, training_forward
from lightning_init.callbacks.later import (
    After,
    builds_later,
    copies,
    freezes_later,
    refresh_copies,
)
from lightning_init.strategies.apply import carry_out
from lightning_init.strategies.distributions import Calibrated
from lightning_init.strategies.needs import NotYetError, UnsuitableError
from lightning_init.strategies.plan import Forward, Plan
from lightning_init.strategies.planning import Scope, StrategyLike, make_plan
from lightning_init.strategies.seeds import Seed
from lightning_init.strategies.spec import InitSpec
from lightning_init.strategies.write import in_float32


class Placement:
    """Initializes one module in one fit, in as many passes as it takes to be built.

    Each pass plans and draws anew; a tensor's draw depends on seed and name alone, so a later pass
    changes only what more knowledge changes.

    Args:
        strategy: What to apply.
        scope: What may be written.
        seed: The seed and where it comes from.
        remembers: Whether the values that tensors were built with are kept, for `again`.

    Attributes:
        strategy: What was applied last.
        plan: What was applied, None before the first pass.
        missing: Why no forward pass has been seen, `""` if one has.
    """

    def __init__(
        self, strategy: StrategyLike, scope: Scope, seed: Seed, remembers: bool = False
    ) -> None:
        self.strategy, self.scope, self.seed = strategy, scope, seed
        self._built: Built | None = Built() if remembers else None
        self.plan: Plan | None = None
        self.missing = ""
        self._on_meta = False
        self._waits = False  # for the first batch, which tells lazy layers their shapes
        self._later: list[After] = []

    def place(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """At `Callback.setup`: write what exists; the rest as soon as the module has built it.

        Where a callback freezes layers in its own `setup`, nothing is written before that.
        """
        hook = builds_later(module)
        waits = freezes_later(trainer)
        if not waits:
            self._write_first(trainer, module, hook)
        set_up = False  # by all callbacks, some of which build the module or freeze layers

        def after_setup() -> None:
            nonlocal set_up
            set_up = True
            if waits:
                self._write_first(trainer, module, None if hook == "setup" else hook)
            elif hook == "setup":
                self._write(module, self.forward(trainer, module))

        def after_configure_model() -> None:
            if set_up:
                self.let_go()
            if set_up or not waits:
                with in_float32():  # the Trainer's precision and device are the defaults in there
                    self._write(module, self.forward(trainer, module))

        if waits or hook is not None:
            self._later.append(After(module, "setup", after_setup, once=True))
        if hook == "configure_model":
            self._later.append(After(module, hook, after_configure_model))

    def _write_first(
        self, trainer: pl.Trainer, module: pl.LightningModule, hook: str | None
    ) -> None:
        if hook is None:
            self._write(module, self.forward(trainer, module))
            return
        # What exists now may be copied by other callbacks; the whole is done when it is built.
        self.missing = "the module builds layers later"
        with suppress(ValueError):  # a pattern may name a layer that is still to be built
            self._write(module, None)

    def catch_up(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """At `on_fit_start`: write what was on the meta device before."""
        self.let_go()
        if self._on_meta:
            self._write(module, self.forward(trainer, module))
        elif self.plan is None and not self._waits:
            self._write(module, None)
        written = any(entry.written for entry in self.plan or ())
        if copies(module.trainer) and written and not was_rewritten(module):  # else restored
            refresh_copies(module.trainer, module)

    def finish(self, module: pl.LightningModule, forward: Forward) -> None:
        """Before the first batch, with its help: what no earlier forward pass could tell."""
        trainer = module.trainer  # its processes may have seen different things: all go on or none
        if agree_that(trainer, not self.missing):
            return
        if any(map(is_flat, module.parameters())):
            self.missing += "; FSDP1 has cut the weights up since, so it stays so"
            return
        # What came after us, as a checkpoint, wins.
        if not agree_that(trainer, not was_rewritten(module)):
            return
        before, self.missing = self.plan, ""
        plan = self._make_plan(module, forward)
        plan = _one_for_all(module, plan)
        same = before is not None and before.entries == plan.entries
        if agree_that(trainer, plan.calibrate_ is None and same):
            return
        self._carry_out(module, plan, forward)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            with torch.no_grad():  # each process saw another batch
                for _, tensor in named_tensors(module):
                    if is_sharded(tensor):
                        continue
                    torch.distributed.broadcast(tensor, 0)
        refresh_copies(trainer, module)

    def again(self, module: pl.LightningModule, spec: InitSpec, forward: Forward) -> None:
        """Initialize anew with another spec, as if it had been the first; in place.

        Raises:
            ValueError: If the spec does not suit the model, or would draw nothing that is ours.
        """
        if self._built is None or self.plan is None:
            raise ValueError("nothing was initialized here")
        first = self._built.first(module, self.plan)
        plan = make_plan(module, spec, forward=forward, scope=self.scope)
        plan = _one_for_all(module, plan)
        plan = replace(plan, entries=tuple(first.allowed(entry, spec) for entry in plan))
        if not any(entry.written and len(entry.info.shape) > 1 for entry in plan):
            raise ValueError(
                "no matrix is free to be drawn: what the model made itself, loaded or froze stays; "
                f"InitCallback({spec.strategy!r}) draws what it made itself"
            )
        self._built.restore(module)
        self.plan = carry_out(module, plan, self.seed.value, forward)
        self.strategy, self.missing = spec, ""

    def agree(self, trainer: pl.Trainer) -> None:
        """Before weights are judged: all have those of the first process, so its plan tells of them.

        What each process has scaled on a batch of its own is not what it has by now.
        """
        scaled = any(isinstance(entry.distribution, Calibrated) for entry in self.plan or ())
        if trainer.world_size == 1:
            return
        if trainer.strategy.reduce_boolean_decision(scaled, all=False):
            entries = trainer.strategy.broadcast(None if self.plan is None else self.plan.entries)
            if self.plan is not None and entries is not None:
                self.plan = replace(self.plan, entries=entries)

    def let_go(self) -> None:
        """Take every wrapper off the module's hooks."""
        for each in reversed(self._later):
            each.remove()
        self._later = []

    def forward(self, trainer: pl.Trainer, module: pl.LightningModule) -> Forward | None:
        """A forward pass before training; None if there is no batch for it."""
        if self.strategy == InitSpec("keep"):  # nothing is decided, so nothing needs to be seen
            self.missing = ""
            return None
        try:
            batch = first_batch(trainer, module)
        except NoBatchError as error:
            self.missing = str(error)
            return None
        self.missing = ""
        return training_forward(module, batch)

    def _write(self, module: pl.LightningModule, forward: Forward | None) -> None:
        self._on_meta = any(tensor.is_meta for _, tensor in named_tensors(module))
        if self._on_meta:
            note_empty(module)
            return
        try:
            plan = self._make_plan(module, forward)
        except NotYetError as error:  # all wait for the first batch
            self._waits = True
            self.missing = self.missing or str(error)
        else:
            self._carry_out(module, _one_for_all(module, plan), forward)

    def _make_plan(self, module: pl.LightningModule, forward: Forward | None) -> Plan:
        try:
            return make_plan(module, self.strategy, forward=forward, scope=self.scope)
        except UnsuitableError:
            raise
        except Exception as error:
            if forward is None:
                raise
            # The user's training_step may need what only training provides.
            self.missing = f"training_step could not run yet ({error})"
        return make_plan(module, self.strategy, scope=self.scope)

    def _carry_out(self, module: pl.LightningModule, plan: Plan, forward: Forward | None) -> None:
        self._calibrate(module, plan, forward)
        if _will_be_flat(module) and not agree_that(module.trainer, plan.calibrate_ is None):
            _make_alike(module)

    def _calibrate(self, module: pl.LightningModule, plan: Plan, forward: Forward | None) -> None:
        if self._built is not None:
            self._built.note(module)
        if plan.calibrate_ is not None and not plan.traced:
            plan, forward = replace(plan, calibrate_=None), None
            self.missing = f"not calibrated: {self.missing or 'no batch was at hand'}"
        try:
            self.plan = carry_out(module, plan, self.seed.value, forward)
        except UnsuitableError:
            raise
        except Exception as error:
            if plan.calibrate_ is None:
                raise
            self.missing = f"not calibrated: training_step could not run yet ({error})"
            self.plan = carry_out(module, replace(plan, calibrate_=None), self.seed.value, None)


def _one_for_all(module: pl.LightningModule, plan: Plan) -> Plan:
    """Each process may have seen another batch: of what they hold together, one decides."""
    if not (any_sharded(module.parameters()) or _will_be_flat(module)):
        return plan
    return replace(plan, entries=module.trainer.strategy.broadcast(plan.entries))


def _will_be_flat(module: pl.LightningModule) -> bool:
    """Whether FSDP1 will cut the weights up as each process has them; DDP makes them alike."""
    trainer = module.trainer
    kinds = {kind.__name__ for kind in type(trainer.strategy).__mro__}
    return trainer.world_size > 1 and "FSDPStrategy" in kinds


def _make_alike(module: pl.LightningModule) -> None:
    """Give all processes the weights of the first."""
    strategy = module.trainer.strategy
    with torch.no_grad():
        for _, tensor in named_tensors(module):
            tensor.copy_(strategy.broadcast(tensor.detach().cpu()))


def was_rewritten(model: nn.Module) -> bool:
    """Whether a tensor that we wrote has other values by now, as from a checkpoint."""
    model = unwrap(model)
    record = record_of(model)
    return any(
        names[0] in record.written and not record.holds(names[0], tensor)
        for names, tensor in named_states(model)
    )
