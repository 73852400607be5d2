"""A search from Python, shaped like Lightning's Tuner: four lines beside the training script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich.console import Console
from torch import nn

from lightning_init.architecture.arguments import unknown
from lightning_init.search.applicable import space_for
from lightning_init.search.as_before import as_before, keep_data, model_as_before
from lightning_init.search.attributes import check_keys, rate_axes, rate_name
from lightning_init.search.budget import Budget
from lightning_init.search.fresh import Fresh
from lightning_init.search.live import Live
from lightning_init.search.look import Look, look_at
from lightning_init.search.loop import Progress
from lightning_init.search.mistakes import ConfigError
from lightning_init.search.module_evaluate import ModuleEvaluate
from lightning_init.search.objectives import Objective, parse_objectives, usual_mode
from lightning_init.search.readout import TRAIN_LOSS
from lightning_init.search.result import SearchResult
from lightning_init.search.serve import quiet
from lightning_init.search.space import Space
from lightning_init.search.statistics import Mode
from lightning_init.search.study import search_init
from lightning_init.search.trainer_settings import settings_of, watched
from lightning_init.search.tuned import TunedResult, apply, in_python
from lightning_init.strategies.spec import InitSpec


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
            progress: Is told how it goes; None to show it, unless the Trainer has no progress bar.

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
                name = rate_name(model, lr_name)
                _require_data(model, evaluate)
                seen = look_at(
                    lambda callbacks, short: evaluate.make(0, {}, callbacks, short),
                    self.trainer.limit_val_batches,
                )
                horizon = min(steps, seen.job_steps or steps)
                far = Budget.longer(horizon, seen.job_steps)
                evaluate.objectives = self._objectives(seen, monitor, mode, objective)
                notes: tuple[str, ...] = ()
                if space is None:
                    space, notes = space_for(seen.architecture, strategies, rate_axes(model, name))
                chosen = space
                check_keys(model, chosen.config)
                name = _searched(name, lr_name, chosen)
                evaluate.ready = seen.ready
                with _shown(self.trainer, progress) as told:
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
                        lr_key=name,
                        workers=workers,
                        storage=storage,
                        identity=type(model).__name__,
                        longest_steps=far if longest_steps is None else longest_steps,
                        progress=told,
                    )
            finally:
                for put_back in undo:
                    put_back()

        def write(won: SearchResult, other: pl.LightningModule | None, number: int | None) -> None:
            apply(won, evaluate, model if other is None else other, number)

        found = {one.name: getattr(result, one.name) for one in fields(SearchResult)}
        said = (*_notes(evaluate, seen, horizon, name), *map(in_python, notes))
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


def _searched(name: str, asked: str, space: Space) -> str:
    """The learning rate's key if it is searched, else `""`.

    Raises:
        ConfigError: If the user names one that the space leaves out.
    """
    if asked and asked not in space.config:
        raise ConfigError(
            f"lr_name: {asked!r} is no axis of the space: add it, config={{{asked!r}: "
            "around(its value)}, or leave lr_name out to keep it as it is"
        )
    return name if name in space.config else ""


def _require_data(model: pl.LightningModule, evaluate: ModuleEvaluate) -> None:
    """Make sure that there is something to train on."""
    if not is_overridden("train_dataloader", evaluate.data_for(model) or model):
        raise ConfigError(
            "no training data: pass a datamodule or train_dataloaders=, or give the model a "
            "train_dataloader"
        )


@contextmanager
def _shown(trainer: pl.Trainer, progress: Progress | None) -> Iterator[Progress | None]:
    """Who is told how it goes: whom the user named, else a picture where the Trainer has a bar."""
    if progress is not None or trainer.progress_bar_callback is None:
        yield progress
        return
    with Live(Console(highlight=False)) as live:
        yield live


def _notes(evaluate: ModuleEvaluate, seen: Look, steps: int, rate: str) -> tuple[str, ...]:
    found = [f"trials: {seen.sentence(steps)}"]
    if why := evaluate.fresh.why_copied:
        found.append(
            f"each trial begins with a copy of the model ({why}): over seeds, keep varies by data "
            "order only"
        )
    if not rate:
        known = rate_name(evaluate.fresh(), "")
        why = f"{known} is no axis of the space" if known else "no learning rate is known"
        more = "" if known else "; name its attribute with lr_name="
        found.append(f"{why}: it is fixed, and at a wrong one the ranking of inits misleads{more}")
    return tuple(found)
