"""A LightningModule and a batch -> one forward pass without side effects on the Trainer.

The one adapter through which analysis, calibration and audit run a user's `training_step`:
`self.log`, `self.optimizers()` and `manual_backward` are silent there, nothing steps. And the one
place that takes a batch before training without moving the user's data order or random state.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_init.architecture.preserve import preserved
from lightning_init.architecture.sharded import is_flat
from lightning_init.architecture.state import keep_state
from lightning_init.callbacks.still import stand_ins, undone

_BATCH = 64  # rows of a batch taken before training, at most


class NoBatchError(RuntimeError):
    """No batch can be had before training starts; the text says why."""


def training_forward(module: pl.LightningModule, batch: Any) -> Callable[[], Tensor | None]:
    """A call without arguments that runs `training_step` on a batch and returns the loss.

    With manual optimization the loss is the sum of what `manual_backward` was given.

    Args:
        module: The LightningModule.
        batch: A batch as `training_step` takes it, on the module's device.

    Returns:
        The call; it returns None if the step shows no loss.
    """

    def forward() -> Tensor | None:
        losses: list[Tensor] = []
        # A step may take its batch apart or write into it; training still needs it whole.
        own = _copied(batch)
        arguments = [own, 0] if _takes_index(module.training_step) else [own]
        with _silenced(module, losses), _precision(module):
            try:
                out = _step(module)(*arguments)
            except Exception:  # what comes after a backward may need gradients, which are not here
                if not losses:
                    raise
        if losses:
            return torch.stack([loss.sum() for loss in losses]).sum()
        found = out.get("loss") if isinstance(out, Mapping) else out
        return found if isinstance(found, Tensor) else None

    return forward


def _step(module: pl.LightningModule) -> Callable[..., Any]:
    if any(map(is_flat, module.parameters())):  # FSDP1 gathers weights when it is called itself
        return module.trainer.strategy.training_step
    return module.training_step


def _copied(batch: Any) -> Any:
    try:
        return copy.deepcopy(batch)
    except Exception:  # part of a graph, or nothing that can be copied: at least its tensors
        return apply_to_collection(batch, Tensor, Tensor.clone)


def first_batch(trainer: pl.Trainer, module: pl.LightningModule) -> Any:
    """A training batch, taken so that the data order and every random state stay as they are.

    Samples are read from the data set by index, evenly spaced, and collated as the loader does;
    neither its sampler nor its generator is touched.

    Raises:
        NoBatchError: If the loader cannot be built yet, or streams its data.
    """
    source = getattr(trainer.fit_loop, "_data_source", None)
    if source is None or source.instance is None or not source.is_defined():
        raise NoBatchError("the Trainer has no training data yet")
    # Reading data may count, cache or open files in whoever provides it.
    undo = keep_state([source.instance])
    with preserved(module):
        try:
            batch = _peek(source.dataloader())
        except NoBatchError:
            raise
        except Exception as error:
            raise NoBatchError(f"the training data loader is not ready yet ({error})") from error
        finally:
            for restore in undo:
                restore()
        parameter = next(module.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        batch = trainer.strategy.batch_to_device(batch, device)
        if any(p.is_floating_point() and p.dtype != torch.float32 for p in module.parameters()):
            # Made in the Trainer's precision, which the batches of the training have, too.
            batch = trainer.precision_plugin.convert_input(batch)
        return batch


def _peek(loader: Any) -> Any:
    if isinstance(loader, Mapping):
        return {key: _peek(value) for key, value in loader.items()}
    if isinstance(loader, Sequence) and not isinstance(loader, str):
        return [_peek(value) for value in loader]
    inner = getattr(loader, "iterables", None)  # lightning's CombinedLoader
    if inner is not None:
        return _peek(inner)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise NoBatchError("the training data is a stream")
    data: Any = loader.dataset
    total = len(data)
    if not total:
        raise NoBatchError("the training data is empty")
    if loader.batch_size is None and loader.batch_sampler is None:
        return loader.collate_fn(data[0])
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 16
    rows = min(int(size), total, _BATCH)
    undo = keep_state([data])
    try:
        return loader.collate_fn([data[index * total // rows] for index in range(rows)])
    finally:
        for restore in undo:
            restore()


@contextmanager
def _silenced(module: pl.LightningModule, losses: list[Tensor]) -> Iterator[None]:
    def nothing(*args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        losses.append(loss)

    replaced: dict[str, Any] = dict.fromkeys(
        ("log", "log_dict", "clip_gradients", "toggle_optimizer", "untoggle_optimizer"), nothing
    )
    replaced["manual_backward"] = backward
    replaced["optimizers"], replaced["lr_schedulers"] = stand_ins(module)
    before = {name: module.__dict__[name] for name in replaced if name in module.__dict__}
    module.__dict__.update(replaced)
    try:
        with undone(module):
            yield
    finally:
        for name in replaced:
            module.__dict__.pop(name, None)
        module.__dict__.update(before)


def _precision(module: pl.LightningModule) -> AbstractContextManager[None]:
    trainer = module._trainer
    if trainer is None:
        return nullcontext()
    context: AbstractContextManager[None] = trainer.precision_plugin.train_step_context()
    return context


def _takes_index(step: Callable[..., Any]) -> bool:
    parameters = list(inspect.signature(step).parameters.values())
    if any(p.name == "batch_idx" or p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    return len(parameters) >= 2
