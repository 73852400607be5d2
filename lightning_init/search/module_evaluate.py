"""Trials of a module in hand: fresh modules like it, its own data, the settings of a Trainer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_init.search.as_before import keep_data, lone
from lightning_init.search.attributes import put
from lightning_init.search.fit import Made, short_fit
from lightning_init.search.fresh import Fresh
from lightning_init.search.isolated import isolated
from lightning_init.search.objectives import Objective
from lightning_init.search.prepared import Prepared
from lightning_init.search.trial import Outcome, Report, Trial


@dataclass
class ModuleEvaluate:
    """Trials of a module with the settings of a Trainer.

    Args:
        fresh: Makes the modules.
        data: A data module.
        loaders: Training and validation loaders, None where there are none.
        settings: Of the Trainer.
        objectives: What to read off each trial.
        ready: Data whose `prepare_data` has been run, `Look.ready`: it runs once in all.
    """

    fresh: Fresh
    data: pl.LightningDataModule | None
    loaders: tuple[Any, Any]
    settings: dict[str, Any]
    objectives: tuple[Objective, ...] = (Objective(),)
    ready: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._prepared: Prepared | None = None
        self._undo = keep_data(self.data, self.loaders)

    def __getstate__(self) -> dict[str, Any]:
        for put_back in self._undo:  # a worker begins where this process began
            put_back()
        return {k: v for k, v in vars(self).items() if k not in ("_undo", "_prepared")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._prepared = None
        self._undo = keep_data(self.data, self.loaders)

    def __call__(self, trial: Trial, report: Report) -> Outcome:
        """Fit a fresh model for a few steps and read its metric."""

        def build(seed: int, callbacks: Sequence[pl.Callback], settings: Mapping[str, Any]) -> Made:
            made = self.make(seed, trial.config, callbacks, settings)
            prepared.take(made[1], seed)
            return made

        prepared = self._prepared = self._prepared or Prepared(self.ready)
        with isolated():
            try:
                return short_fit(build, trial, report, self.objectives)
            finally:
                prepared.settle()

    def make(
        self,
        seed: int,
        config: Mapping[str, Any],
        callbacks: Sequence[pl.Callback],
        settings: Mapping[str, Any],
    ) -> Made:
        """Fresh model and Trainer, and data as it was before the first trial."""
        for put_back in self._undo:
            put_back()
        pl.seed_everything(seed, workers=True, verbose=False)
        model = self.fresh()
        for key, value in config.items():
            put(model, key, value)
        own = copy.deepcopy(self.settings["callbacks"])
        given: dict[str, Any] = {**self.settings, **settings, "callbacks": [*own, *callbacks]}
        if "devices" in self.settings:
            given["devices"] = self.settings["devices"]
        return model, self.data_for(model), pl.Trainer(**given)

    def data_for(self, model: pl.LightningModule) -> pl.LightningDataModule | None:
        """The data for one fit: what a fit does to a data module stays with a shallow copy."""
        if self.data is not None:
            return copy.copy(self.data)
        train, val = self.loaders
        if train is None and val is None:
            return None
        return _loaders(model, train, val)


def _loaders(model: pl.LightningModule, train: Any, val: Any) -> pl.LightningDataModule:
    """Loaders as a data module: what is not given is the model's own, as `Trainer.fit` has it."""
    kept_train = train is not None or is_overridden("train_dataloader", model)
    kept_val = val is not None or is_overridden("val_dataloader", model)

    class Train(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return model.train_dataloader() if train is None else lone(train)

    class Val(pl.LightningDataModule):
        def val_dataloader(self) -> Any:
            return model.val_dataloader() if val is None else lone(val)

    class Both(Train, Val):
        pass

    made: pl.LightningDataModule = (Both if kept_train and kept_val else Train)()
    return made
