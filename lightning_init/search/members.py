"""Several trained models of one module class, validated as one: their outputs are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_init.search.job import ConfigError
from lightning_init.search.marks import Metrics, validate


def validate_together(
    trainer: pl.Trainer, module: pl.LightningModule, others: Sequence[pl.LightningModule]
) -> Metrics:
    """What validation logs if the outputs of several models are averaged.

    The module's `validation_step` runs once; what it calls to get outputs, `self(...)` or one of
    its layers such as `self.net(...)`, answers for all models together.

    Args:
        trainer: A Trainer that is fitting the module.
        module: One of the models.
        others: The other ones, of the same class; they are run in eval mode.

    Raises:
        ConfigError: If `validation_step` gets its outputs neither from `self(...)` nor from one
            layer.
    """
    name = _answering(trainer, module)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    for other in others:
        other.to(device).eval()
    own = module.get_submodule(name)
    calls = [own.forward, *(other.get_submodule(name).forward for other in others)]

    def together(*args: Any, **kwargs: Any) -> Any:
        return mean([call(*args, **kwargs) for call in calls])

    with _replaced(own, together):
        return validate(trainer, module)


def mean(outputs: Sequence[Any]) -> Any:
    """The mean of equally structured outputs: of each floating tensor; the rest is the first's.

    Example:
        >>> mean([(torch.zeros(2), "a"), (torch.ones(2), "b")])
        (tensor([0.5000, 0.5000]), 'a')
    """
    flat = [tree_flatten(output) for output in outputs]
    leaves = [
        torch.stack(each).mean(0)
        if isinstance(each[0], Tensor) and each[0].is_floating_point()
        else each[0]
        for each in zip(*(found for found, _ in flat), strict=True)
    ]
    return tree_unflatten(leaves, flat[0][1])


def _answering(trainer: pl.Trainer, module: pl.LightningModule) -> str:
    """The name of the one module whose output validation uses, `""` for the whole."""
    called: dict[str, None] = {}
    inside = [0]

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not inside[0]:
                called[name] = None
            inside[0] += 1
            try:
                return call(*args, **kwargs)
            finally:
                inside[0] -= 1

        return forward

    parts = [
        (name, part)
        for name, part in module.named_modules()
        if not name or any(True for _ in part.parameters())
    ]
    stack = [_replaced(part, watched(name, part.forward)) for name, part in parts]
    for each in stack:
        each.__enter__()
    try:
        validate(trainer, module, batches=1)
    finally:
        for each in reversed(stack):
            each.__exit__(None, None, None)
    if len(called) != 1:
        found = ", ".join(f"self.{name}" if name else "self" for name in called) or "no layer"
        raise ConfigError(
            f"--objective ensemble: validation_step gets its outputs from {found}, so they cannot "
            "be averaged: call self(batch) there once, and the layers in forward"
        )
    return next(iter(called))


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before
