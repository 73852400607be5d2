"""What the labels of a batch say of an output layer's bias.

A bias at the log prior of the classes (or at the mean target) lets training start at the loss of a
constant guess. It is suggested only where the labels are clearly uneven: on balanced ones a batch's
counts are noise. Where the loss is computed in the observed pass, its labels are at hand. The
answer itself, even or not, is at hand too, for a scheme that is asked for it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_init.architecture.calls import Op
from lightning_init.architecture.graph import Graph
from lightning_init.architecture.operations import CONVERSIONS, CONVOLUTIONS, MOVEMENTS

LOSSES = frozenset(
    {
        *("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits"),
        *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"),
    }
)
ANSWERED = LOSSES | {"binary_cross_entropy"}
_LINKS = {"nll_loss": "log_softmax", "binary_cross_entropy": "sigmoid"}  # from logits to scores
_CLEAR = 4.0  # standard errors from even labels
_PER_CLASS = 5  # labels per class, on average, below which counts say nothing


def labels(kind: str, scores: Tensor, target: object) -> tuple[float, ...]:
    """The outputs that would be right on average, `()` if zero is as good.

    Args:
        kind: One of `LOSSES`.
        scores: What the model put out, (N, C, ...) for classes.
        target: Class indices, or values of the same shape.

    Returns:
        One value per output feature, or a single one.

    Example:
        >>> values = labels("cross_entropy", torch.zeros(100, 2), torch.tensor([0] * 90 + [1] * 10))
        >>> round(values[0] - values[1], 2)  # log(91 / 11)
        2.11
    """
    if not isinstance(target, Tensor) or target.is_meta or not target.numel():
        return ()
    if kind in ("cross_entropy", "nll_loss"):
        return _classes(scores, target)
    if target.shape != scores.shape or not target.is_floating_point():
        return ()
    values = target.detach().float()
    rows = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values.reshape(-1, 1)
    count = len(rows)
    if count < _PER_CLASS:
        return ()
    if kind == "binary_cross_entropy_with_logits":
        ones = rows.sum(0)
        clear = (2 * ones - count).abs() > _CLEAR * math.sqrt(count)
        found = ((ones + 1) / (count - ones + 1)).log()
    else:
        clear = rows.mean(0).abs() > _CLEAR * rows.std(0) / math.sqrt(count)
        found = rows.mean(0)
    return tuple(found.where(clear, torch.zeros(())).tolist()) if bool(clear.any()) else ()


def _classes(scores: Tensor, target: Tensor) -> tuple[float, ...]:
    classes = scores.shape[1] if scores.ndim > 1 else scores.shape[0]
    if target.is_floating_point():
        return ()
    counted = target[(target >= 0) & (target < classes)].flatten()  # others are ignored indices
    if classes < 2 or len(counted) < _PER_CLASS * classes:
        return ()
    counts = torch.bincount(counted.cpu(), minlength=classes).double()
    even = len(counted) / classes
    chi_square = float(((counts - even) ** 2 / even).sum())
    if math.sqrt(2 * chi_square) - math.sqrt(2 * classes - 3) < _CLEAR:  # Fisher's approximation
        return ()
    logs = ((counts + 1) / (len(counted) + classes)).log()
    return tuple((logs - logs.mean()).tolist())


def answer(
    kind: str,
    scores: Tensor,
    target: object,
    feature: int = -1,
    told: Mapping[str, Any] | None = None,
) -> tuple[float, ...]:
    """The logits, or values, of the best constant output, `()` if the labels do not tell.

    Log frequencies of classes, the logit of a frequency, the mean target or, for absolute errors,
    the median; weighted, smoothed and left out as the loss is told. What was never seen counts as
    half a label.

    Args:
        kind: One of `ANSWERED`.
        scores: What the model put out, (N, C, ...) for classes.
        target: Class indices, their probabilities, or values of the same shape.
        feature: The dimension of output features where `target` has the shape of `scores`.
        told: What else the loss was given: `weight`, `pos_weight`, `ignore_index`,
            `label_smoothing`, `delta`, `beta`.

    Returns:
        One value per output feature.

    Example:
        >>> ones = torch.tensor([[1.0]] * 30 + [[0.0]] * 10)
        >>> found = answer("binary_cross_entropy_with_logits", torch.zeros(40, 1), ones)
        >>> round(found[0], 4)  # log 3
        1.0986
    """
    if not isinstance(target, Tensor) or target.is_meta or not target.numel() or not scores.ndim:
        return ()
    target, told = target.detach(), told or {}
    softmax = kind in ("cross_entropy", "nll_loss")
    if softmax and not target.is_floating_point():
        classes = scores.shape[min(1, scores.ndim - 1)]
        counted = target[(target >= 0) & (target < classes) & (target != told.get("ignore_index"))]
        counts = torch.bincount(counted.cpu(), minlength=classes).double()
    elif target.shape == scores.shape and target.is_floating_point():
        at = min(1, target.ndim - 1) if softmax else feature
        rows = _rows(target, at, softmax)
        if not softmax:
            weight = told.get("weight")
            each = rows.new_ones(()) if weight is None else _rows(weight.expand_as(target), at)
            return tuple(_constants(kind, rows, each.expand_as(rows), told).tolist())
        counts = rows.sum(0)
    else:
        return ()
    if not bool(counts.any()):
        return ()
    smoothing = float(told.get("label_smoothing") or 0.0)
    weight = told.get("weight")
    counts = (1 - smoothing) * counts + smoothing * counts.mean()
    some = counts.where(counts > 0, torch.full_like(counts, 0.5))
    if isinstance(weight, Tensor):
        some = some * weight.detach().double().cpu().clamp(min=1e-12)
    return tuple((some / some.sum()).log().tolist())


def _rows(values: Tensor, at: int, softmax: bool = False) -> Tensor:
    """Values with the features last: (N, C)."""
    values = values.detach().double().cpu()
    values = values if values.ndim > 1 or softmax else values[:, None]
    return values.movedim(at, -1).reshape(-1, values.shape[at])


def _constants(kind: str, rows: Tensor, each: Tensor, told: Mapping[str, Any]) -> Tensor:
    """The best constant per column of (N, C) targets, of which each counts by its weight."""
    if "binary" in kind:
        more = told.get("pos_weight")
        ones, zeros = (each * rows).sum(0), (each * (1 - rows)).sum(0)
        half = 0.5 * each.mean(0)
        odds = torch.maximum(ones, half) / torch.maximum(zeros, half).clamp(min=1e-300)
        return (odds if more is None else odds * more.detach().double().cpu()).log()
    mean = (each * rows).sum(0) / each.sum(0)
    turn = {"l1_loss": 0.0, "smooth_l1_loss": told.get("beta"), "huber_loss": told.get("delta")}
    if kind not in turn:
        return mean
    # From where on errors count by their size alone; the slope is then monotone in the constant.
    limit = max(1.0 if turn[kind] is None else float(turn[kind] or 0.0), 1e-9)
    low, high = rows.min(0).values, rows.max(0).values
    for _ in range(60):
        middle = (low + high) / 2
        rising = (each * (rows - middle).clamp(-limit, limit)).sum(0) > 0
        low, high = middle.where(rising, low), high.where(rising, middle)
    return (low + high) / 2


def answers(graph: Graph) -> dict[int, tuple[float, ...]]:
    """By the id of an output layer's bias, the constant that answers the labels best."""
    return _of_biases(graph, "answer", _LINKS)


def priors(graph: Graph) -> dict[int, tuple[float, ...]]:
    """By the id of an output layer's bias, the values that the labels of the batch suggest."""
    return _of_biases(graph, "labels", {})


def _of_biases(graph: Graph, key: str, links: dict[str, str]) -> dict[int, tuple[float, ...]]:
    told: dict[int, list[tuple[float, ...]]] = {}
    for op in graph.ops:
        if key not in op.seen or not op.signals:
            continue
        layer = _source(graph, op, links.get(op.kind, ""))
        channels = layer.kind in CONVOLUTIONS and key == "answer"
        values: tuple[float, ...] = op.seen["channels" if channels else key]
        for place, weight in layer.weights:
            fits = math.prod(weight.shape) == len(values) or not values
            if layer.product is not None and place != layer.matrix and fits:
                told.setdefault(weight.params[0], []).append(values)
    # A discriminator hears "all real" and "all fake": no constant is right for both.
    return {bias: all_[0] for bias, all_ in told.items() if all_[0] and len(set(all_)) == 1}


def _source(graph: Graph, loss: Op, link: str) -> Op:
    """The layer whose result, at most rearranged, a loss takes."""
    index = loss.signals[0].op
    while graph.ops[index].kind in MOVEMENTS | CONVERSIONS | {link} and graph.ops[index].inputs:
        index = graph.ops[index].inputs[0]
    return graph.ops[index]


def observed(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a call of a loss shows: `labels`, and `answer` by features and by channels."""
    scores = args[0] if args else kwargs.get("input")
    target = args[1] if len(args) > 1 else kwargs.get("target")
    if not isinstance(scores, Tensor):
        return {}
    told = _told(kind, args, kwargs)
    return {
        "labels": labels(kind, scores, target) if kind in LOSSES else (),
        "answer": answer(kind, scores, target, told=told),
        "channels": answer(kind, scores, target, min(1, max(scores.ndim - 1, 0)), told),
    }


def _told(kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a loss of `torch.nn.functional` was given besides scores and labels, by its name."""
    names = list(inspect.signature(getattr(F, kind)).parameters)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    kept = ("weight", "pos_weight", "ignore_index", "label_smoothing", "delta", "beta")
    return {name: given[name] for name in kept if given.get(name) is not None}
