"""Watches loss functions at work: the value of each call beside that of knowing nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_init.architecture.readings import LossReading
from lightning_init.health.given import given

_CLASSES = {F.cross_entropy, F.nll_loss}
_BINARY = {F.binary_cross_entropy_with_logits, F.binary_cross_entropy}


class LossWatch(TorchFunctionMode):
    """Reads classification and squared-error losses that run inside the block.

    Example:
        >>> with LossWatch() as watch:
        ...     loss = F.cross_entropy(torch.zeros(4, 10), torch.arange(4))
        >>> watch.readings[0].kind, round(watch.readings[0].value / watch.readings[0].chance, 4)
        ('cross-entropy over 10 classes', 1.0)
    """

    def __init__(self) -> None:
        super().__init__()
        self.readings: list[LossReading] = []
        self.rows = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the call; if it is a loss, read it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in _CLASSES or func in _BINARY or func is F.mse_loss:
            reading = _read(func, out, args, kwargs)
            self.readings += [] if reading is None else [reading]
            target = args[1] if len(args) > 1 else kwargs.get("target")
            if isinstance(target, Tensor) and target.ndim:
                self.rows = max(self.rows, len(target))
        return out


def _read(
    func: Callable[..., Any], out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> LossReading | None:
    inputs = args[0] if args else kwargs.get("input")
    target = args[1] if len(args) > 1 else kwargs.get("target")
    if not (isinstance(out, Tensor) and isinstance(inputs, Tensor) and isinstance(target, Tensor)):
        return None
    if not inputs.numel() or not target.numel():
        return None
    if kwargs.get("weight") is not None or kwargs.get("pos_weight") is not None:
        return None  # weights change what chance means
    with torch.no_grad():
        if func in _CLASSES:
            return _classes(func, out, inputs, target, kwargs)
        values = target.detach().float()
        per_element = _per_element(out, values.numel(), kwargs)
        if func is F.mse_loss:
            square, variance = float((values**2).mean()), float(values.var(correction=0))
            kind, exact, chance, prior = "squared error", False, square, variance
        else:
            logits = " with logits" if func is F.binary_cross_entropy_with_logits else ""
            kind, exact, chance = f"binary cross-entropy{logits}", True, math.log(2)
            share = min(max(float(values.mean()), 0.0), 1.0)
            prior = _entropy([share, 1 - share])
        ends = [float(end) for end in torch.aminmax(values)]
        return LossReading(
            kind, per_element, chance, prior, exact,
            target_low=ends[0], target_high=ends[1], **given(inputs),
        )  # fmt: skip


def _classes(
    func: Callable[..., Any], out: Tensor, inputs: Tensor, target: Tensor, kwargs: dict[str, Any]
) -> LossReading | None:
    classes = inputs.shape[1 if inputs.ndim > 1 else 0]
    if classes < 2:
        return None
    name = "cross-entropy" if func is F.cross_entropy else "negative log-likelihood"
    if target.is_floating_point():  # probabilities as targets
        count, prior = target.numel() // classes, math.log(classes)
    else:
        valid = target[target != kwargs.get("ignore_index", -100)]
        count = valid.numel()
        if not count:
            return None
        counts = torch.bincount(valid.flatten().clamp(0, classes - 1), minlength=classes)
        prior = _entropy((counts / counts.sum()).tolist())
        if count == classes and int(counts.max()) == 1:
            prior = 0.0  # each answer once: samples are told apart, which a fresh model can, too
    return LossReading(
        f"{name} over {classes} classes",
        _per_element(out, count, kwargs),
        math.log(classes),
        prior,
        exact=True,
        classes=classes,
        **given(inputs, classes),
    )


def _per_element(out: Tensor, count: int, kwargs: dict[str, Any]) -> float:
    total = float(out.detach().float().sum())
    summed = kwargs.get("reduction", "mean") != "mean" or out.ndim > 0
    return total / count if summed else total


def _entropy(shares: list[float]) -> float:
    return -sum(share * math.log(share) for share in shares if share > 0)
