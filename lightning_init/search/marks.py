"""Validation in the middle of a fit that leaves no trace in it.

The module's own validation runs in a loop of its own, on loaders of its own, between two training
steps. Weights, buffers, gradients, optimizers, schedulers, every random state, the generators of
the user's loaders, plain state of module, data and callbacks, logged metrics and the Trainer's
loops are afterwards as they were: the fit goes on as if nothing had been read.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_init.architecture.preserve import preserved
from lightning_init.architecture.state import keep_state
from lightning_init.callbacks.arguments import callbacks_of
from lightning_init.callbacks.later import After

Metrics = dict[str, float]


def validate(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    *,
    on_training_data: bool = False,
    batches: int | None = None,
) -> Metrics:
    """What the module's validation logs, now; nothing of the fit is moved.

    Args:
        trainer: A Trainer that is fitting.
        module: Its module.
        on_training_data: Whether validation runs on as many batches of the training data.
        batches: At most so many batches of each loader; None for the Trainer's own limit.

    Returns:
        Name -> value; empty if the module has no validation.
    """
    epochs = trainer.fit_loop.epoch_loop
    if not trainer.enable_validation:
        return {}
    loop = _EvaluationLoop(
        trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False
    )
    own = epochs.val_loop._data_source
    with _untouched(trainer, module):
        epochs.val_loop = loop
        loop._data_source = own
        if on_training_data:
            batches = _count(loop) if batches is None else batches
            source = trainer.fit_loop._data_source
            loop._data_source = _Training(source.instance, "train_dataloader")
            loop._combined_loader = None
        loop.setup_data()
        combined = loop._combined_loader
        assert combined is not None
        undo = keep_state(_sources(combined.flattened))
        combined.flattened = [_lone(loader) for loader in combined.flattened]
        if batches is not None:
            loop._max_batches = [min(limit, batches) for limit in loop._max_batches]
        try:
            loop.run()
        finally:
            loop.teardown()
            for put_back in undo:
                put_back()
        return _numbers(trainer._logger_connector._callback_metrics)


class _Training(_DataLoaderSource):
    """The training data as training has it: of several loaders a batch each, not one after the other."""

    def dataloader(self) -> Any:
        loaders = super().dataloader()
        several = isinstance(loaders, (Mapping, list, tuple))
        return CombinedLoader(loaders, "max_size_cycle") if several else loaders


class Marks(pl.Callback):
    """Reads the metrics at some steps of a fit and at its end.

    Args:
        steps: Optimizer steps after which they are read.
        known: More metrics at that moment, as the training loss so far.
        end: What else is to be done after the last step, while all is still in place.
        stopped: Whether the fit was ended early: nothing more is read then.

    Attributes:
        found: (step, metrics) in the order of steps; the last is that of the end.
    """

    def __init__(
        self,
        steps: Iterable[int],
        known: Callable[[], Metrics],
        end: Callable[[pl.Trainer, pl.LightningModule], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._waiting = sorted(set(steps))
        self._known, self._end, self._stopped = known, end, stopped
        self.found: list[tuple[int, Metrics]] = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Read at a mark."""
        step = trainer.global_step
        if not self._waiting or step < self._waiting[0] or self._stopped():
            return
        metrics = self._read(trainer, pl_module)
        while self._waiting and self._waiting[0] <= step:
            self.found.append((self._waiting.pop(0), metrics))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read at the end, after the module's own hook: averaged weights are in place then."""

        def last() -> None:
            if not self._stopped():
                step = trainer.global_step
                self.found = [point for point in self.found if point[0] < step]
                self.found.append((step, self._read(trainer, pl_module)))
                self._end(trainer, pl_module)

        if is_overridden("on_train_end", pl_module):
            After(pl_module, "on_train_end", last, once=True)
        else:
            last()

    def _read(self, trainer: pl.Trainer, module: pl.LightningModule) -> Metrics:
        metrics = _numbers(trainer.callback_metrics)
        return {**metrics, **validate(trainer, module), **self._known()}


@contextmanager
def _untouched(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Put back what a validation inside a fit moves, but for the loaders' own state."""
    epochs, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    watchers = [each for each in callbacks_of(trainer) if not _ours(each)]
    roots: list[object] = [getattr(trainer, "datamodule", None)]
    roots += [vars(each) for each in watchers]
    roots += [optimizer.param_groups for optimizer in trainer.optimizers]
    roots += [vars(config.scheduler) for config in trainer.lr_scheduler_configs]
    if trainer.fit_loop._combined_loader is not None:
        roots += _sources(trainer.fit_loop._combined_loader.flattened)
    undo = keep_state(roots)
    before, state = dict(vars(trainer)), dict(vars(trainer.state))
    loop, logged = epochs.val_loop, dict(vars(connector))
    with preserved(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a shuffled loader, say: the fit says it once itself
        vars(trainer)["callbacks"] = watchers
        connector.reset_metrics()
        trainer.validating = True
        try:
            yield
        finally:
            epochs.val_loop = loop
            for thing, values in ((trainer, before), (trainer.state, state), (connector, logged)):
                for name in vars(thing).keys() - values.keys():
                    del vars(thing)[name]
                vars(thing).update(values)
            for put_back in undo:
                put_back()


def _sources(loaders: Iterable[Any]) -> list[object]:
    """Where loaders keep state: generators, samplers, data sets."""
    found: list[object] = []
    for loader in loaders:
        batches = getattr(loader, "batch_sampler", None)
        samplers = [getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]
        found += [getattr(loader, "generator", None), getattr(loader, "dataset", None)]
        found += [vars(sampler) for sampler in samplers if hasattr(sampler, "__dict__")]
    return [one for one in found if one is not None]


def _lone(loader: Any) -> Any:
    """A loader without the worker processes and the iterator that the user's own may hold."""
    if not isinstance(loader, DataLoader) or loader._iterator is None:
        return loader
    with suppress(Exception):
        loader = copy.copy(loader)
        vars(loader).update(_iterator=None)
    return loader


def _count(loop: _EvaluationLoop) -> int:
    """How many validation batches there are, over all loaders."""
    loop.setup_data()
    total = sum(loop._max_batches)
    return int(total) if total != float("inf") else 2**31


def _ours(callback: pl.Callback) -> bool:
    return type(callback).__module__.partition(".")[0] == __name__.partition(".")[0]


def _numbers(metrics: Any) -> Metrics:
    return {str(name): float(value) for name, value in metrics.items()}
