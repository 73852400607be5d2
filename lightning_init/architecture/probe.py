"""Reads the signals of a model at work: outputs, their gradients, weights, inputs, attention.

A probe knows the model's structure once. Between `start` and `stop` it listens: each output is
reduced at once, on its device, to a few numbers, and `step` moves all of them to the host in one
transfer. Outside of that nothing of it is on the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_init.architecture.aside import aside
from lightning_init.architecture.compiled import is_compiled
from lightning_init.architecture.heard import Heard, Step
from lightning_init.architecture.listener import Listener
from lightning_init.architecture.readings import (
    AttentionReading,
    LayerReading,
    LossReading,
    StepReading,
)
from lightning_init.architecture.sharded import hush
from lightning_init.architecture.signals import euclidean, norms
from lightning_init.architecture.stage import Stage
from lightning_init.architecture.weighing import PlannedEntry, Scale, portion

__all__ = ["PlannedEntry", "Probe", "euclidean", "is_compiled"]


class Probe:
    """Listens to a model between `start` and `stop`, which leaves no trace.

    Args:
        model: The model.
        plan: The plan that was applied, if any: readings then say what it promised.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> probe = Probe(model)
        >>> probe.start(full=True)
        >>> _ = model(torch.ones(2, 4))
        >>> probe.stop()
        >>> [(layer.name, layer.after and layer.after.function) for layer in probe.step(0).layers]
        [('0', 'tanh'), ('2', None)]
    """

    def __init__(self, model: nn.Module, plan: Iterable[PlannedEntry] | None = None) -> None:
        self.model = model
        self.samples: dict[str, Tensor] = {}
        self.error: Exception | None = None
        self._plan = plan
        self._listener: Listener | None = None
        self._unhush: Callable[[], object] = bool
        self._heard = Step()
        self._grads: dict[int, int] = {}
        self._twins: dict[int, int] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._full = False

    @cached_property
    def stage(self) -> Stage:
        """Where there is something to hear."""
        return Stage(self.model)

    @cached_property
    def scale(self) -> Scale:
        """What there is to weigh."""
        return Scale(self.model, self._plan)

    def start(self, full: bool = False, sample: bool = False, follow: bool = True) -> None:
        """Put hooks on the layers and listen to the calls between them.

        A compiled model is left alone: hooks would not run, and the mode would compile it anew.

        Args:
            full: Read all rows of every output instead of the leading ones.
            sample: Also keep a few values of each output, in `samples`.
            follow: Also read what happens between the layers: activations, inputs, attention.
        """
        self.stop()
        self._forget()
        self._full = full
        if follow:
            _ = self.scale  # before the model runs: a batch that is counted looks like training
        if not is_compiled(self.model):
            self._listener = Listener(self.stage, full=full, sample=sample, follow=follow)
            self._heard = self._listener.step
            self.samples = self._heard.samples
            self._unhush = hush(self.model)
            self._listener.listen()

    def stop(self) -> None:
        """Take every hook off the model; again does no harm."""
        if self._listener is not None:
            self._listener.rest()
            self._unhush()
            self._listener = None

    def before_update(self, parameters: Iterable[Tensor]) -> None:
        """Keep a portion of each matrix, to see how far the coming update moves it."""
        for parameter in parameters:
            if (
                parameter.ndim > 1
                and parameter.numel()
                and parameter.layout is torch.strided
                and not parameter.is_meta
            ):
                with aside():
                    self._before[id(parameter)] = (parameter, portion(parameter).clone())

    def gradient(self, parameter: Tensor, scale: float = 1.0) -> None:
        """Remember the norm of a parameter's gradient, divided by `scale`."""
        self.gradients([parameter], scale)

    def gradients(
        self, parameters: Iterable[Tensor], scale: float = 1.0, twins: bool = False
    ) -> None:
        """Remember the norms of gradients.

        Args:
            parameters: Those whose `.grad` is read, if there is one.
            scale: What the gradients are still multiplied by.
            twins: Also look for units whose weights and gradients are those of another unit.
        """
        with aside():
            some = {id(p): p.grad for p in parameters if p.grad is not None}
            self._note_gradients(some, scale, twins)

    def _note_gradients(
        self, grads: Mapping[int, Tensor], scale: float = 1.0, twins: bool = False
    ) -> None:
        ledger = self._heard.ledger
        grads = {key: grad for key, grad in grads.items() if grad.numel() and not grad.is_meta}
        for key, norm in zip(grads, norms(list(grads.values())), strict=True):
            self._grads[key] = ledger.note(norm if scale == 1.0 else norm / scale)
        if twins:
            self._twins = self.scale.twins(ledger, grads)

    def step(
        self,
        step: int,
        lrs: Mapping[int, float] | None = None,
        *,
        grads: Mapping[int, Tensor] | None = None,
        losses: tuple[LossReading, ...] = (),
        loss_scale: float = 1.0,
    ) -> StepReading:
        """Everything since `start`, moved to the host at once; then it is forgotten.

        Args:
            step: Its number.
            lrs: `id(parameter)` -> learning rate.
            grads: `id(parameter)` -> gradient, of those that `gradients` has not seen.
            losses: What was read of the losses.
            loss_scale: What the loss was multiplied by before it went backward.
        """
        heard, ledger = self._heard, self._heard.ledger
        with aside():
            self._note_gradients(grads or {}, twins=self._full)
            weighed = self.scale.weigh(ledger, self._full)
            moved = self._moved()
            heard.pool.reduce(ledger)
            numbers = ledger.read()
        updates = {
            key: numbers[far] / numbers[size]
            for key, (far, size) in moved.items()
            if numbers[size] > 0
        }
        weights = self.scale.readings(
            weighed,
            numbers,
            {key: numbers[place] for key, place in self._grads.items()},
            updates,
            lrs or {},
            {key: numbers[place] for key, place in self._twins.items()},
        )
        stds = {
            name: each.expected_std if math.isfinite(each.expected_std) else each.rms
            for each in weights
            for name in each.names
            if not each.expected_mean
            or math.isnan(each.expected_mean)  # of a mean, no law is known
        }
        reading = StepReading(
            step,
            tuple(self._layer(each, numbers, loss_scale, stds) for each in heard.layers.values()),
            weights,
            losses,
            tuple(
                seen.of(name, numbers, name in heard.normalized and self._only_normed(name))
                for name, seen in heard.inputs.items()
            ),
            tuple(
                AttentionReading(name, **scores.of(numbers)) for name, scores in heard.attentions
            ),
        )
        self.error = heard.error
        self._forget()
        return reading

    def layers(self) -> tuple[LayerReading, ...]:
        """The layers alone, without their weights; then they are forgotten."""
        with aside():
            self._heard.pool.reduce(self._heard.ledger)
            numbers = self._heard.ledger.read()
        found = tuple(self._layer(h, numbers, 1.0, {}) for h in self._heard.layers.values())
        self._forget()
        return found

    def _layer(
        self, heard: Heard, numbers: list[float], loss_scale: float, stds: Mapping[str, float]
    ) -> LayerReading:
        place = heard.place
        moments: dict[str, Any] = heard.values.of(numbers)
        norm = numbers[heard.grad] / loss_scale if heard.grad >= 0 else math.nan
        took = math.nan
        if heard.took[0] >= 0:
            took = numbers[heard.took[0]] / math.sqrt(heard.took[1])
        weight = self._weight_of(heard)
        expected = math.nan
        if weight in stds:
            expected = math.sqrt(self.scale.by_name[weight].info.fan_in) * stds[weight] * took
        return LayerReading(
            name=place.name,
            kind=place.kind,
            group=place.group,
            **moments,
            grad_norm=norm,
            grad_rms=norm / math.sqrt(heard.size),
            rescaled=self.stage.rescaled,
            input_rms=took,
            expected_rms=expected,
            sample_cosine=heard.values.cosine(numbers, units=False),
            unit_cosine=heard.values.cosine(numbers, units=True),
            is_output=place.name == self._heard.last,
            after=heard.after.of(numbers) if heard.after else None,
        )

    def _weight_of(self, heard: Heard) -> str:
        """Name of the one matrix that a layer multiplies by, `""` if there are several."""
        place = heard.place
        if place.name in self.stage.raw:
            return place.name  # a bare parameter that is one of several
        simple = isinstance(place.module, (nn.Linear, nn.modules.conv._ConvNd))
        if simple or place.kind == "Conv1D":
            return f"{place.name}.weight".lstrip(".")
        return ""

    def _only_normed(self, layer: str) -> bool:
        """Whether norms alone take a layer's result, as far as a traced plan tells."""
        weight = self.scale.by_name.get(f"{layer}.weight".lstrip("."))
        usage = None if weight is None else weight.info.usage
        return usage is None or usage.normalized

    def _moved(self) -> dict[int, tuple[int, int]]:
        """Places of the norms of an update and of the weight before it, on the portion kept."""
        before = [kept for _, kept in self._before.values()]
        if not before:
            return {}
        far = [portion(parameter) - kept for parameter, kept in self._before.values()]
        ledger = self._heard.ledger
        return {
            key: (ledger.note(distance), ledger.note(size))
            for key, distance, size in zip(self._before, norms(far), norms(before), strict=True)
        }

    def _forget(self) -> None:
        self._heard = Step()
        if self._listener is not None:
            self._listener.step = self._heard
            self._listener.step.samples = self.samples
        self._grads, self._twins, self._before = {}, {}, {}
