"""A model with one hidden layer, trained beside the user's on the same batches and the same loss.

If that learns and the deep one does not, the data, the loss and the learning rate are able to
teach: what is wrong is the depth, or how it was initialized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_init.architecture.names import unwrap
from lightning_init.architecture.preserve import preserved
from lightning_init.architecture.readings import BaselineReading
from lightning_init.health.audit import audit
from lightning_init.health.overheard import LossCall, Overhear
from lightning_init.health.registry import examine
from lightning_init.health.report import Report

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
_LARGEST = 1 << 16  # outputs per sample: more are a picture, which one layer does not draw


class NoBaselineError(ValueError):
    """A shallow model cannot be trained on this task; the text says why."""


def shallow_baseline(
    model: nn.Module,
    step: Callable[[Any], Tensor],
    batches: Iterable[Any],
    optimizer: MakeOptimizer,
) -> Report:
    """Train a model and one with a single hidden layer on the same batches, and compare them.

    Args:
        model: The model; its weights and the random state are afterwards as they were.
        step: From a batch to the scalar loss of `model`.
        batches: One per training step, at least one.
        optimizer: From parameters to an optimizer, used for both.

    Returns:
        The audit of the first batch, with both losses, and a finding if the deep model is worse.

    Raises:
        NoBaselineError: If the loss or the inputs cannot be seen.
        ValueError: If there is no batch.

    Example:
        >>> deep = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> x, y = torch.randn(32, 4), torch.randint(0, 3, (32,))
        >>> def loss(batch): return nn.functional.cross_entropy(deep(batch[0]), batch[1])
        >>> report = shallow_baseline(deep, loss, [(x, y)] * 5, lambda p: torch.optim.SGD(p, 0.1))
        >>> len(report.readings.baseline.deep), len(report.readings.baseline.shallow)
        (5, 5)
    """
    every = list(batches)
    if not every:
        raise ValueError("there is no batch: `len(batches) >= 1` must hold")
    report = audit(model, lambda: step(every[0]))
    with preserved(model), _lent(model), torch.enable_grad():
        trainable = [p for p in unwrap(model).parameters() if p.requires_grad]
        chosen = optimizer(trainable)
        twin = Twin(model, optimizer)
        for index, batch in enumerate(every):
            chosen.zero_grad()
            with Overhear() as heard:
                loss = step(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            chosen.step()
            twin.learn(index, heard)
    return with_baseline(report, twin.reading())


def with_baseline(report: Report, reading: BaselineReading) -> Report:
    """A report that knows what a shallow model reached, judged anew."""
    old = report.readings
    loss = old.loss | {step: value for step, value in reading.deep.items() if step not in old.loss}
    seen = replace(old, loss=dict(sorted(loss.items())), baseline=reading)
    return replace(report, findings=examine(seen), readings=seen)


@contextmanager
def _lent(model: nn.Module) -> Iterator[None]:
    """Copies in the place of the trainable parameters, which no optimizer is to have stepped on."""
    homes = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    copies = {id(p): nn.Parameter(p.detach().clone()) for _, _, p in homes}
    try:
        for module, name, parameter in homes:
            setattr(module, name, copies[id(parameter)])
        yield
    finally:
        for module, name, parameter in homes:
            setattr(module, name, parameter)


class Twin:
    """The shallow model: built from the first step that it overhears, then trained on each.

    Args:
        model: The user's model, for a width and the size of its vocabulary.
        optimizer: From parameters to an optimizer.
    """

    def __init__(self, model: nn.Module, optimizer: MakeOptimizer) -> None:
        parameters = [p for p in unwrap(model).parameters() if p.ndim >= 2]
        rows = sorted(p.shape[0] for p in parameters) or [64]
        self.width = min(512, max(64, rows[len(rows) // 2]))
        tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
        self._words = max(tables, default=0)
        self._make = optimizer
        self._net: _Shallow | None = None
        self._optimizer: Optimizer | None = None
        self._deep: dict[int, float] = {}
        self._shallow: dict[int, float] = {}
        self._lr = math.nan

    def learn(self, step: int, heard: Overhear, lr: float | None = None) -> None:
        """One training step on what the user's model saw and the loss that it met.

        Args:
            step: Its number.
            heard: What was overheard.
            lr: The learning rate of this step, None for the optimizer's own.

        Raises:
            NoBaselineError: If the loss or the inputs cannot be seen.
        """
        if not heard.losses:
            raise NoBaselineError(
                "the loss is not computed by one of PyTorch's loss functions (cross_entropy, "
                "mse_loss, ...), or inside of a compiled model: a baseline cannot learn it"
            )
        call = max(heard.losses, key=lambda one: one.outputs.numel())
        given = _given(heard.inputs, call)
        with torch.enable_grad(), torch.autocast(given.device.type, enabled=False):
            if self._net is None or self._optimizer is None:
                self._net = _Shallow(given, call, self.width, self._words)
                self._optimizer = self._make(self._net.parameters())
                self._lr = float(self._optimizer.param_groups[0]["lr"]) if lr is None else lr
            if lr is not None:
                for group in self._optimizer.param_groups:
                    group["lr"] = lr
            loss = call.of(self._net(given, call.outputs.shape))
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self._net.parameters(), 1.0)
            self._optimizer.step()
        self._deep[step] = call.value
        self._shallow[step] = float(loss.detach())

    def reading(self) -> BaselineReading:
        """Both losses so far."""
        return BaselineReading(dict(self._deep), dict(self._shallow), self.width, self._lr)


class _Shallow(nn.Module):
    """Flattened inputs (or the mean of embedded tokens), one hidden ReLU layer, outputs."""

    def __init__(self, given: Tensor, call: LossCall, width: int, words: int) -> None:
        super().__init__()
        shape = call.outputs.shape
        self.positions = _positions(given, shape)
        device = given.device
        self.table: nn.Parameter | None = None
        generator = torch.Generator().manual_seed(0)

        def drawn(rows: int, columns: int, std: float) -> nn.Parameter:
            values = torch.randn(rows, columns, generator=generator) * std
            return nn.Parameter(values.to(device))

        if given.is_floating_point():
            features = given[0].numel() if not self.positions else given.shape[-1]
        else:
            features = width
            self.table = drawn(max(words, int(given.max()) + 1), width, 1.0)
        outputs = math.prod(shape[1:]) if not self.positions else _classes(shape, given)
        if outputs > _LARGEST:
            raise NoBaselineError(f"{outputs} outputs per sample are too many for one layer")
        self.hidden = drawn(width, features, math.sqrt(2 / features))
        self.bias = nn.Parameter(torch.zeros(width, device=device))
        self.out = drawn(outputs, width, math.sqrt(1 / width))
        self.shift = nn.Parameter(torch.zeros(outputs, device=device))

    def forward(self, given: Tensor, shape: torch.Size) -> Tensor:
        if self.table is not None:
            x = self.table[given.long().clamp(0, self.table.shape[0] - 1)]
            x = x if self.positions or x.ndim == 2 else x.flatten(1, -2).mean(1)
        else:
            x = given.float()
            x = x if self.positions else x.flatten(1)
        out = nn.functional.linear(x, self.hidden, self.bias).relu()
        out = nn.functional.linear(out, self.out, self.shift)
        if not self.positions:
            return out.reshape(shape)
        if out[..., 0].numel() != shape.numel() // self.out.shape[0]:
            out = out[:, :-1]  # the last position has nothing to predict
        if len(shape) == 3 and shape[1] == self.out.shape[0] and shape[2] == out.shape[1]:
            out = out.movedim(-1, 1)
        return out.reshape(shape)


def _given(inputs: Iterable[Tensor], call: LossCall) -> Tensor:
    """The model's input: the first from outside whose samples fit those of the outputs."""
    shape = call.outputs.shape
    for one in inputs:
        if not len(shape) or one.ndim < 1 or one.is_complex():
            continue
        if (one.shape[0] == shape[0] and len(shape) >= 1) or _positions(one, shape):
            return one
    raise NoBaselineError(
        "none of the tensors that the model takes has as many samples as its outputs, so that a "
        "baseline does not know what belongs to what"
    )


def _positions(given: Tensor, shape: torch.Size) -> bool:
    """Whether outputs are per position of a sequence, as in a language model."""
    if given.ndim != (3 if given.is_floating_point() else 2):
        return False
    rows, length = given.shape[:2]
    if len(shape) == 2 and shape[0] in (rows * length, rows * (length - 1)) and length > 1:
        return True
    if len(shape) == 1 and shape[0] in (rows * length, rows * (length - 1)) and length > 1:
        return True
    return (
        len(shape) == 3
        and shape[0] == rows
        and length > 1
        and (shape[1] in (length, length - 1) or shape[2] in (length, length - 1))
    )


def _classes(shape: torch.Size, given: Tensor) -> int:
    """Outputs per position: what is neither samples nor positions."""
    if len(shape) == 1:
        return 1
    if len(shape) == 2:
        return shape[1]
    length = given.shape[1]
    # (samples, classes, positions) is what cross_entropy takes; (samples, positions, n) what others
    return shape[1] if shape[2] in (length, length - 1) else shape[2]
