"""A search from Python, shaped like Lightning's Tuner: four lines beside the training script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.parsing import (
    lightning_getattr,
    lightning_hasattr,
    lightning_setattr,
)
from torch import nn

from lightning_init.architecture.arguments import unknown
from lightning_init.search.applicable import space_for
from lightning_init.search.as_before import as_before, keep_data, model_as_before
from lightning_init.search.budget import Budget
from lightning_init.search.fresh import Fresh, copied
from lightning_init.search.job import SHORT, interruptible
from lightning_init.search.look import Look, look_at
from lightning_init.search.loop import Progress
from lightning_init.search.mistakes import ConfigError
from lightning_init.search.module_evaluate import ModuleEvaluate
from lightning_init.search.objectives import Objective, parse_objectives, usual_mode
from lightning_init.search.readout import TRAIN_LOSS
from lightning_init.search.result import SearchResult
from lightning_init.search.serve import quiet
from lightning_init.search.space import Space, around
from lightning_init.search.statistics import Mode
from lightning_init.search.study import search_init
from lightning_init.search.trainer_settings import settings_of, watched
from lightning_init.strategies.spec import InitSpec

_RATES = ("lr", "learning_rate")  # as Lightning's learning-rate finder looks for them


@dataclass(frozen=True)
class TunedResult(SearchResult):
    """What `InitTuner.find` found; it knows the model that was searched.

    Attributes:
        notes: What was said before the search: how trials begin, what was fixed.
    """

    notes: tuple[str, ...] = ()
    write: Callable[[SearchResult, pl.LightningModule | None, int | None], None] = field(
        default=lambda *_: None, repr=False, compare=False
    )

    def apply(self, model: pl.LightningModule | None = None, seed: int | None = None) -> None:
        """Initialize a model as the winner does, and set its learning rate.

        Args:
            model: None for the one that was searched.
            seed: Of the draw; None for the global seed, as everywhere.
        """
        self.write(self, model, seed)


class InitTuner:
    """Finds the best init for a model with the settings of a Trainer.

    Args:
        trainer: Its precision, clipping, accumulation, limits and callbacks hold for trials too;
            nothing is run in it, and it is left as it is.

    Example:
        >>> import lightning.pytorch as L
        >>> from lightning_init import InitTuner
        >>> L.Trainer  # doctest: +ELLIPSIS
        <class '...Trainer'>
        >>> def main(model, data):
        ...     trainer = L.Trainer(max_steps=1000)
        ...     found = InitTuner(trainer).find(model, data, trials=20)
        ...     print(found.verdict())
        ...     found.apply()
        ...     trainer.fit(model, data)
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self.trainer = trainer

    def find(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        *,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        strategies: Sequence[str | InitSpec] | None = None,
        space: Space | None = None,
        trials: int = 20,
        steps: int = 100,
        longest_steps: int | None = None,
        confirm_seeds: int = 5,
        confirm_steps: int | None = None,
        monitor: str | None = None,
        mode: Mode | None = None,
        objective: str | Sequence[str] = "last",
        lr_name: str = "",
        seed: int = 0,
        sampler: Literal["tpe", "gp"] = "tpe",
        workers: int = 0,
        storage: str | Path | None = None,
        progress: Progress | None = None,
    ) -> TunedResult:
        """Try inits by short trainings of fresh models; model, data, Trainer and RNG stay as they are.

        A model that nothing has touched since it was built is built again for each trial, from its
        hyperparameters; any other is copied: frozen and pretrained weights are kept then, and
        `keep` varies over seeds by data order only.

        Args:
            model: The model to search an init for.
            datamodule: Its data; or pass loaders, or let the model bring them.
            train_dataloaders: Loaders, as `Trainer.fit` takes them.
            val_dataloaders: Loaders, as `Trainer.fit` takes them.
            strategies: What to try, by name or spec; None for what applies to the model.
            space: What to try in detail, instead of `strategies`; its configuration keys are
                attributes or hyperparameters of the model.
            trials: Trials in the screening; with a storage, over all sessions.
            steps: Training steps of a trial, at most those of the Trainer.
            longest_steps: Where nothing learns, trials begin anew, longer, up to this; None for
                three times `steps`, at most the Trainer's; 0 for never.
            confirm_seeds: Fresh paired seeds for the best few and `keep`, at least 2.
            confirm_steps: Of a confirmation run; None for three times `steps`, at most the Trainer's.
            monitor: The metric; None for what the Trainer's checkpoints watch, else `val_loss`,
                else the training loss.
            mode: Which is better; None to go by the name.
            objective: `last`, `area`, `steps_to=0.9`, ... of the metric; several are searched
                together, see `Objective`.
            lr_name: The attribute or hyperparameter that is the learning rate; `""` looks for
                `lr` and `learning_rate`.
            seed: Of the screening; confirmation uses the next ones.
            sampler: `tpe`, or `gp` for 50 trials and more.
            workers: Worker processes; 0 runs trials in this one.
            storage: A journal file or a database's URL; the same call then goes on with it.
            progress: Is told how it goes.

        Returns:
            The result, with `.suggestion()`, `.results`, `.plot()`, `.apply()`, `.to_callback()`.

        Raises:
            ValueError: If an argument is not legal, or the model cannot be made afresh.
        """
        if vars(self.trainer)["fast_dev_run"]:
            raise ConfigError("the Trainer has fast_dev_run: a search needs one that trains")
        if datamodule is not None and not isinstance(datamodule, pl.LightningDataModule):
            raise ConfigError(
                "datamodule must be a LightningDataModule, but got "
                f"{type(datamodule).__name__}: pass loaders as train_dataloaders="
            )
        if datamodule is not None and (train_dataloaders, val_dataloaders) != (None, None):
            raise ConfigError("pass a datamodule or loaders, but not both")
        if space is not None and strategies is not None:
            raise ConfigError("pass strategies or a space, but not both")
        model = _uncompiled(model)
        with as_before(), model_as_before(model):
            quiet()
            evaluate = ModuleEvaluate(
                Fresh(model),
                datamodule,
                (train_dataloaders, val_dataloaders),
                settings_of(self.trainer),
            )
            undo = keep_data(datamodule, (train_dataloaders, val_dataloaders))
            try:
                name = _rate_name(model, lr_name)
                seen = look_at(
                    lambda callbacks, short: evaluate.make(0, {}, callbacks, short),
                    self.trainer.limit_val_batches,
                )
                horizon = min(steps, seen.job_steps or steps)
                far = Budget.longer(horizon, seen.job_steps)
                evaluate.objectives = self._objectives(seen, monitor, mode, objective)
                notes: tuple[str, ...] = ()
                if space is None:
                    space, notes = space_for(seen.architecture, strategies, _axes(model, name))
                chosen = space
                for key in chosen.config:
                    if not lightning_hasattr(model, key):
                        known = [k for k in (*vars(model), *model.hparams) if k[0] != "_"]
                        raise ConfigError(f"space: {unknown('attribute of the model', key, known)}")
                result = search_init(
                    evaluate,
                    chosen,
                    trials=trials,
                    steps=horizon,
                    seed=seed,
                    confirm_seeds=confirm_seeds,
                    confirm_steps=confirm_steps or far,
                    mode=[each.direction for each in evaluate.objectives],
                    monitor=[each.name for each in evaluate.objectives],
                    sampler=sampler,
                    lr_key=name if name in chosen.config else "",
                    workers=workers,
                    storage=storage,
                    identity=type(model).__name__,
                    longest_steps=far if longest_steps is None else longest_steps,
                    progress=progress,
                )
            finally:
                for put_back in undo:
                    put_back()

        def write(won: SearchResult, other: pl.LightningModule | None, number: int | None) -> None:
            _apply(won, evaluate, model if other is None else other, number)

        found = {one.name: getattr(result, one.name) for one in fields(SearchResult)}
        said = (*_notes(evaluate, seen, horizon, name), *notes)
        return TunedResult(**found, notes=said, write=write)

    def _objectives(
        self, seen: Look, monitor: str | None, mode: Mode | None, objective: str | Sequence[str]
    ) -> tuple[Objective, ...]:
        logged = seen.metrics
        if monitor is None and (found := watched(self.trainer)) is not None:
            monitor, mode = found[0], mode or ("max" if found[1] == "max" else "min")
        monitor = monitor or ("val_loss" if "val_loss" in logged else TRAIN_LOSS)
        if monitor not in (*logged, TRAIN_LOSS):
            raise ConfigError(
                f"monitor: {unknown('metric', monitor, logged)} (the module logs these)"
            )
        texts = [objective] if isinstance(objective, str) else list(objective)
        return parse_objectives(texts, monitor, mode or usual_mode(monitor))


def _uncompiled(model: nn.Module) -> pl.LightningModule:
    """The module itself: trials of a compiled one are run without compiling it."""
    module = getattr(model, "_orig_mod", model)
    if not isinstance(module, pl.LightningModule):
        raise ConfigError(f"model must be a LightningModule, but got {type(module).__name__}")
    if module._compiler_ctx is not None:  # its steps are bound to it, also those of a copy
        raise ConfigError(
            f"{type(module).__name__} is compiled: search first, then torch.compile(model)"
        )
    return module


def _rate_name(model: pl.LightningModule, name: str) -> str:
    if name:
        if not lightning_hasattr(model, name):
            known = [key for key in (*vars(model), *model.hparams) if key[0] != "_"]
            raise ConfigError(f"lr_name: {unknown('attribute of the model', name, known)}")
        return name
    return next((each for each in _RATES if lightning_hasattr(model, each)), "")


def _axes(model: pl.LightningModule, name: str) -> dict[str, Any]:
    rate = lightning_getattr(model, name) if name else None
    return {name: around(float(rate))} if isinstance(rate, (int, float)) and rate > 0 else {}


def _notes(evaluate: ModuleEvaluate, seen: Look, steps: int, rate: str) -> tuple[str, ...]:
    found = [f"trials: {seen.sentence(steps)}"]
    if why := evaluate.fresh.why_copied:
        found.append(
            f"each trial begins with a copy of the model ({why}): over seeds, keep varies by data "
            "order only"
        )
    if not rate:
        found.append(
            "no learning rate is known: it is fixed, and at a wrong one the ranking of inits "
            "misleads; name its attribute with lr_name="
        )
    return tuple(found)


def _apply(
    result: SearchResult, evaluate: ModuleEvaluate, model: pl.LightningModule, seed: int | None
) -> None:
    best = result.best
    if not best.is_baseline:
        for key, value in best.config.items():
            lightning_setattr(model, key, value)
    if best.spec.strategy == "keep":
        return
    undo = keep_data(evaluate.data, evaluate.loaders)
    with as_before():
        quiet()
        twin = copied(model)
        init = result.to_callback(seed=seed, verbose=False, monitor_steps=0, loss_steps=0)
        data = evaluate.data_for(twin)
        settings = {**evaluate.settings, **SHORT, "max_steps": 0}
        settings["callbacks"] = [init]
        trainer = pl.Trainer(**settings)
        with interruptible():
            trainer.fit(twin, datamodule=data)
        for put_back in undo:
            put_back()
    drawn = dict(twin.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(drawn[name])
