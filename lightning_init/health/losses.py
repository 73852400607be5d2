"""Watches loss functions at work: the value of each call beside that of knowing nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_init.architecture.aside import aside
from lightning_init.architecture.readings import LossReading
from lightning_init.health.given import given

Loss = Callable[..., Any]

_CLASSES: tuple[Loss, ...] = (F.cross_entropy, F.nll_loss)
_BINARY: tuple[Loss, ...] = (F.binary_cross_entropy_with_logits, F.binary_cross_entropy)
_ERRORS: dict[Loss, str] = {
    F.mse_loss: "squared error",
    F.l1_loss: "absolute error",
    F.smooth_l1_loss: "smooth absolute error",
    F.huber_loss: "Huber loss",
}


class LossWatch(TorchFunctionMode):
    """Reads classification and regression losses that run inside the block.

    Attributes:
        readings: One per call.
        rows: Samples of the largest batch that a loss saw.

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
        func: Loss,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the call; if it is a loss, read it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in _CLASSES or func in _BINARY or func in _ERRORS:
            with torch.no_grad(), aside():
                reading = self._read(func, out, args, kwargs)
            self.readings += [] if reading is None else [reading]
        return out

    def _read(
        self, func: Loss, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LossReading | None:
        inputs = args[0] if args else kwargs.get("input")
        target = args[1] if len(args) > 1 else kwargs.get("target")
        if not (
            isinstance(out, Tensor) and isinstance(inputs, Tensor) and isinstance(target, Tensor)
        ):
            return None
        if not inputs.numel() or not target.numel():
            return None
        if target.ndim:
            self.rows = max(self.rows, len(target))
        weight = args[2] if len(args) > 2 and func not in _ERRORS else kwargs.get("weight")
        if func in _ERRORS and weight is not None:
            return None
        if func in _CLASSES:
            return _classes(func, out, inputs, target, kwargs, weight)
        values = target.detach().float()
        low, high = values.aminmax()
        found: dict[str, Any] = {**given(inputs)}
        found |= {"target_low": float(low), "target_high": float(high)}
        per_element = _per_element(out, inputs.numel(), kwargs)
        if func in _ERRORS:
            chance, prior = _constant(func, values, kwargs)
            return LossReading(_ERRORS[func], per_element, chance, prior, exact=False, **found)
        chance, prior = _yes_or_no(values, weight, kwargs.get("pos_weight"))
        found["varies"] = weight is not None or kwargs.get("pos_weight") is not None
        kind = "binary cross-entropy"
        kind += " with logits" if func is F.binary_cross_entropy_with_logits else ""
        return LossReading(kind, per_element, chance, prior, True, **found)


def _yes_or_no(
    target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> tuple[float, float]:
    """The loss of logit 0, and of the best constant, for all outputs or for each of its own."""
    ones, zeros = target.clamp(0, 1), 1 - target.clamp(0, 1)
    ones = ones if pos_weight is None else ones * pos_weight
    if weight is not None:
        ones, zeros = ones * weight, zeros * weight
    ones, zeros = ones + 0 * zeros, zeros + 0 * ones  # of one shape
    priors = []
    for width in {1, ones.shape[-1] if ones.ndim > 1 else 1}:
        yes, no = (part.reshape(-1, width).mean(0) for part in (ones, zeros))
        both = torch.special.entr(yes) + torch.special.entr(no) - torch.special.entr(yes + no)
        priors.append(float(both.mean()))
    return float((ones + zeros).mean()) * math.log(2), max(min(priors), 0.0)


def _constant(func: Loss, target: Tensor, kwargs: dict[str, Any]) -> tuple[float, float]:
    """The loss of the answer 0, and of a good constant: the mean, or the median of the target."""
    beta = {key: kwargs[key] for key in ("beta", "delta") if key in kwargs}
    squared = func is F.mse_loss
    best = target.mean() if squared else target.flatten().median()
    answers = (torch.zeros_like(target), best.expand_as(target))
    chance, prior = (float(func(answer, target, **beta)) for answer in answers)
    return chance, prior


def _classes(
    func: Loss,
    out: Tensor,
    inputs: Tensor,
    target: Tensor,
    kwargs: dict[str, Any],
    weight: Tensor | None,
) -> LossReading | None:
    dim = 1 if inputs.ndim > 1 else 0
    classes = inputs.shape[dim]
    if classes < 2:
        return None
    name = "cross-entropy" if func is F.cross_entropy else "negative log-likelihood"
    count: float
    if target.is_floating_point():  # probabilities as targets
        if weight is not None:
            return None
        count, prior, valid = target.numel() // classes, math.log(classes), target
    else:
        valid = target[target != kwargs.get("ignore_index", -100)]
        count = valid.numel()
        if not count:
            return None
        counts = torch.bincount(valid.flatten().clamp(0, classes - 1), minlength=classes)
        once = count == classes and int(counts.max()) == 1
        if weight is not None:  # the mean is over the weights, too
            counts = counts * weight.detach()
            count = float(counts.sum())
            if not count > 0:
                return None
        prior = _entropy((counts / counts.sum()).tolist())
        if once:
            prior = 0.0  # each answer once: samples are told apart, which a fresh model can, too
    return LossReading(
        f"{name} over {classes} classes",
        _per_element(out, count, kwargs),
        math.log(classes),
        prior,
        exact=True,
        classes=classes,
        target_low=float(valid.min()),
        target_high=float(valid.max()),
        **given(inputs, classes),
    )


def _per_element(out: Tensor, count: float, kwargs: dict[str, Any]) -> float:
    total = float(out.detach().float().sum())
    summed = kwargs.get("reduction", "mean") != "mean" or out.ndim > 0
    return total / count if summed else total


def _entropy(shares: list[float]) -> float:
    return -sum(share * math.log(share) for share in shares if share > 0)
