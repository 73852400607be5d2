"""What a training starts from: printed, written into the run's folder, kept in checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import nn

from lightning_init.architecture.sharded import is_flat
from lightning_init.callbacks.display import render
from lightning_init.callbacks.logs import save_weights, unwritable, write_json
from lightning_init.callbacks.placement import Placement
from lightning_init.callbacks.several import inits_of, together
from lightning_init.health.report import Report
from lightning_init.strategies.apply import fingerprint
from lightning_init.strategies.plan import Plan
from lightning_init.strategies.planning import Scope
from lightning_init.strategies.spec import InitSpec

_KEY = "lightning_init"  # of a checkpoint


@dataclass(frozen=True)
class Start:
    """What one InitCallback has drawn, once the model is whole: plain data, for files.

    Args:
        name: The strategy's name.
        scope: The callback's scope, a list as a list.
        spec: The spec as plain data, None for a function.
        seed: The seed.
        seed_source: Where the seed comes from, in words.
        fingerprint: SHA-256 of all weights of the model.

    Example:
        >>> start = Start("gpt2", "untrained", {"strategy": "gpt2"}, 3, "given", "ab12")
        >>> Start.found([asdict(start)], "untrained") == start
        True
        >>> print(start)
        gpt2, seed 3, fingerprint ab12
    """

    name: str
    scope: str | list[str]
    spec: dict[str, Any] | None
    seed: int
    seed_source: str
    fingerprint: str

    @classmethod
    def of(cls, module: nn.Module, placed: Placement, name: str) -> Start:
        """What was applied to a module, and what it weighs now."""
        spec = placed.strategy.to_dict() if isinstance(placed.strategy, InitSpec) else None
        return cls(
            name,
            _plain(placed.scope),
            spec,
            placed.seed.value,
            placed.seed.source,
            fingerprint(module),
        )

    @classmethod
    def found(cls, saved: object, scope: Scope) -> Start | None:
        """The one of a scope among those that a checkpoint has, None if there is none."""
        names = {each.name for each in fields(cls)}
        for each in saved if isinstance(saved, list) else ():
            if isinstance(each, dict) and names <= each.keys() and each["scope"] == _plain(scope):
                return cls(**{name: each[name] for name in names})
        return None

    def __str__(self) -> str:
        spec = InitSpec.from_dict(self.spec) if self.spec else self.name
        return f"{spec}, seed {self.seed}, fingerprint {self.fingerprint[:12]}"


class Origin:
    """What a run starts from, as one InitCallback knows it.

    Args:
        name: The strategy's name.
        scope: The callback's scope.
        file: Where a copy of the weights goes, None for nowhere.

    Attributes:
        start: Of this run, None before its first batch.
        before: Of the run whose checkpoint this one goes on from, None if there is none.
        plan: What was applied.
    """

    def __init__(self, name: str, scope: Scope, file: Path | None) -> None:
        self.name, self.scope, self.file = name, scope, file
        self.forget()

    def forget(self) -> None:
        """A new run begins."""
        self.start: Start | None = None
        self.before: Start | None = None
        self.plan: Plan | None = None

    def check(self, trainer: pl.Trainer) -> None:
        """Before anything is changed: the file can be written; all processes call this.

        Raises:
            OSError: If it cannot.
        """
        if self.file is None:
            return
        writes = trainer.is_global_zero
        if why := trainer.strategy.broadcast(unwritable(self.file) if writes else ""):
            raise OSError(
                f"save_init={str(self.file)!r} cannot be written ({why}): name a .safetensors file "
                "in a folder that can be"
            )

    @property
    def known(self) -> Start | None:
        """What the run started from, be it this one or the one it goes on from."""
        return self.start or self.before

    def seal(self, trainer: pl.Trainer, module: pl.LightningModule, placed: Placement) -> None:
        """Note what training starts from and write it down; all processes call this.

        What other InitCallbacks have drawn is part of it: of the last all is told.
        """
        placed.agree(trainer)
        # FSDP1 alone knows where its parts are.
        model = trainer.strategy.model if any(map(is_flat, module.parameters())) else module
        model = model or module
        self.start, self.plan = Start.of(model, placed, self.name), placed.plan
        told = []
        for each in _drawn(trainer):
            each.start = replace(each.start or self.start, fingerprint=self.start.fingerprint)
            plan = None if each.plan is None else each.plan.to_dict()
            told.append({**asdict(each.start), "plan": plan})
            if each.file is not None:
                facts = {"fingerprint": self.start.fingerprint}
                save_weights(model, each.file, facts, writes=trainer.is_global_zero)
        for one in told[:-1]:
            del one["fingerprint"]  # it is of the whole model
        write_json(trainer, "init.json", {**told[-1], "also": told[:-1]})

    def whole_plan(self, trainer: pl.Trainer) -> Plan | None:
        """What all InitCallbacks have applied so far."""
        plans = [each.plan for each in _drawn(trainer) if each.plan is not None]
        return together(plans) if plans else None

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Put it into a checkpoint: as plain data, so that `weights_only=True` reads it.

        It is no `state_dict` of the callback: that would need a key of its own for each of
        several callbacks, and Lightning would ask for them wherever the checkpoint is loaded.
        """
        if self.known is not None:
            checkpoint.setdefault(_KEY, []).append(asdict(self.known))

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Know from a checkpoint what the run started from."""
        self.before = Start.found(checkpoint.get(_KEY), self.scope)


def _plain(scope: Scope) -> str | list[str]:
    return scope if isinstance(scope, str) else sorted(scope)


def _drawn(trainer: pl.Trainer) -> list[Origin]:
    """Those of all InitCallbacks that have drawn something, in their order."""
    found: list[Origin] = [each.origin for each in inits_of(trainer)]
    return [each for each in found if each.start is not None]


def table(placed: Placement, report: Report | None, name: str) -> str:
    """What was drawn, where and why, beside what it does."""
    if placed.plan is None:
        return ""
    spec = placed.strategy  # not always the callback's own: that of a rescue
    chosen = spec if isinstance(spec, InitSpec) else name
    late = placed.missing and f"; {placed.missing}"
    head = f"lightning_init: {chosen}, seed {placed.seed.value} ({placed.seed.source}){late}"
    return render(placed.plan, report, head)
