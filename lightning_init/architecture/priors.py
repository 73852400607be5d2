"""What the labels of a batch say of an output layer's bias.

A bias at the log prior of the classes (or at the mean target) lets training start at the loss of a
constant guess. It is suggested only where the labels are clearly uneven: on balanced ones a batch's
counts are noise. Where the loss is computed in the observed pass, its labels are at hand. The
answer itself, even or not, is at hand too, for a scheme that is asked for it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
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


def answer(kind: str, scores: Tensor, target: object, feature: int = -1) -> tuple[float, ...]:
    """The logits, or values, of the best constant output, `()` if the labels do not tell.

    Log frequencies of classes, the logit of a frequency, or the mean target. What was never seen
    counts as half a label.

    Args:
        kind: One of `ANSWERED`.
        scores: What the model put out, (N, C, ...) for classes.
        target: Class indices, their probabilities, or values of the same shape.
        feature: The dimension of output features where `target` has the shape of `scores`.

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
    target = target.detach()
    softmax = kind in ("cross_entropy", "nll_loss")
    if softmax and not target.is_floating_point():
        classes = scores.shape[min(1, scores.ndim - 1)]
        counted = target[(target >= 0) & (target < classes)].flatten()  # others are ignored
        counts = torch.bincount(counted.cpu(), minlength=classes).double()
    elif target.shape == scores.shape and target.is_floating_point():
        at = min(1, target.ndim - 1) if softmax else feature
        rows = target.double() if target.ndim > 1 or softmax else target.double()[:, None]
        features = rows.shape[at]
        rows = rows.movedim(at, -1).reshape(-1, features).cpu()
        if "binary" in kind:
            ones = rows.sum(0)
            return tuple((ones.clamp(min=0.5) / (len(rows) - ones).clamp(min=0.5)).log().tolist())
        if not softmax:
            return tuple(rows.mean(0).tolist())
        counts = rows.sum(0)
    else:
        return ()
    if not bool(counts.any()):
        return ()
    some = counts.where(counts > 0, torch.full_like(counts, 0.5))
    return tuple((some / some.sum()).log().tolist())


def answers(graph: Graph) -> dict[int, tuple[float, ...]]:
    """By the id of an output layer's bias, the constant that answers the labels best."""
    return _of_biases(graph, "answer", _LINKS)


def priors(graph: Graph) -> dict[int, tuple[float, ...]]:
    """By the id of an output layer's bias, the values that the labels of the batch suggest."""
    return _of_biases(graph, "labels", {})


def _of_biases(graph: Graph, key: str, links: dict[str, str]) -> dict[int, tuple[float, ...]]:
    found: dict[int, tuple[float, ...]] = {}
    for op in graph.ops:
        if not op.seen.get(key):
            continue
        layer = _source(graph, op, links.get(op.kind, ""))
        channels = layer.kind in CONVOLUTIONS and key == "answer"
        values: tuple[float, ...] = op.seen["channels" if channels else key]
        for place, weight in layer.weights:
            size = math.prod(weight.shape)
            if layer.product is not None and place != layer.matrix and size == len(values):
                found[weight.params[0]] = values
    return found


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
    return {
        "labels": labels(kind, scores, target) if kind in LOSSES else (),
        "answer": answer(kind, scores, target),
        "channels": answer(kind, scores, target, min(1, max(scores.ndim - 1, 0))),
    }
