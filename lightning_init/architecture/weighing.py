"""Reads the weights of a model: their scale, their gradients, how far an update moved them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.analyze import analyze
from lightning_init.architecture.ledger import Ledger
from lightning_init.architecture.names import named_tensors, named_weights, unwrap
from lightning_init.architecture.parametrized import Derived
from lightning_init.architecture.params import ParamInfo, Role
from lightning_init.architecture.readings import WeightReading
from lightning_init.architecture.sharded import any_sharded, is_flat, whole
from lightning_init.architecture.signals import means, norms
from lightning_init.architecture.twins import twins

_PART = 2**14  # elements that mean and norm of a weight are read from at a monitored step
_SLICE = 4096  # elements of a weight that an update ratio is read from
_ROUNDING = 1e-6  # of the square of the mean: a variance below is that of equal values


class Expected(Protocol):
    """Mean and std that a plan promises for a tensor."""

    @property
    def std(self) -> float:
        """Standard deviation."""

    @property
    def mean(self) -> float:
        """Mean."""


class PlannedEntry(Protocol):
    """One line of a plan, as far as a probe reads it."""

    @property
    def info(self) -> ParamInfo:
        """The tensor."""

    @property
    def distribution(self) -> Expected:
        """What it was drawn from."""

    @property
    def written(self) -> bool:
        """Whether it was drawn at all."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """One tensor and what is known of it beforehand."""

    names: tuple[str, ...]
    parameter: nn.Parameter
    info: ParamInfo
    entry: PlannedEntry | None
    computed: Derived | None

    def pieces(self) -> list[Tensor]:
        """Its values without the padding row, as views."""
        value = self.parameter if self.computed is None else self.computed.value()
        value = whole(value)
        padding = self.info.padding_idx
        if padding is None or value.ndim < 1 or value.shape[0] < 2:
            return [value]
        row = padding % value.shape[0]
        return [part for part in (value[:row], value[row + 1 :]) if part.numel()]

    @property
    def module(self) -> str:
        """Name of the module that owns it."""
        return self.names[0].rpartition(".")[0]


class Scale:
    """The tensors of a model, to be weighed at any step.

    Args:
        model: The model.
        plan: The plan that was applied, if any.
    """

    def __init__(self, model: nn.Module, plan: Iterable[PlannedEntry] | None = None) -> None:
        model = unwrap(model)
        entries = {entry.info.names: entry for entry in plan or ()}
        tensors = named_tensors(model)
        infos = {names: entry.info for names, entry in entries.items()}
        if any(names not in infos for names, _ in tensors):
            infos = {info.names: info for info in analyze(model)} | infos
        computed = named_weights(model)
        self.tensors = [
            Weighed(
                names,
                parameter,
                infos.get(names) or ParamInfo(names, tuple(parameter.shape), Role.OTHER),
                entries.get(names),
                computed[names][0] if names in computed else None,
            )
            for names, parameter in tensors
            if not (is_lazy(parameter) or is_flat(parameter))
            and not parameter.is_meta
            and parameter.is_floating_point()
            and parameter.numel()
        ]
        self.by_name = {name: each for each in self.tensors for name in each.names}

    def weigh(self, ledger: Ledger, full: bool) -> list[list[tuple[int, ...]]]:
        """For each tensor and piece of it the places of mean, norm and, if full, extremes."""
        if any_sharded(tensor.parameter for tensor in self.tensors):  # one at a time is whole
            groups = [[tensor] for tensor in self.tensors]
            return [places for group in groups for places in self._weigh(group, ledger, full)]
        return self._weigh(self.tensors, ledger, full)

    def _weigh(
        self, tensors: Sequence[Weighed], ledger: Ledger, full: bool
    ) -> list[list[tuple[int, ...]]]:
        pieces = [tensor.pieces() for tensor in tensors]
        parts = [[each if full else portion(each, _PART) for each in some] for some in pieces]
        flat = [part for some in parts for part in some]
        sizes, middles = iter(norms(flat)), iter(means(flat))
        found = []
        for all_of, read in zip(pieces, parts, strict=True):
            places: list[tuple[int, ...]] = []
            for piece, part in zip(all_of, read, strict=True):
                numbers = [next(middles), next(sizes)]
                numbers += list(torch.aminmax(piece)) if full else []
                places.append((piece.numel(), part.numel(), *map(ledger.note, numbers)))
            found.append(places)
        return found

    def readings(
        self,
        weighed: Sequence[Sequence[tuple[int, ...]]],
        numbers: Sequence[float],
        grads: Mapping[int, float],
        updates: Mapping[int, float],
        lrs: Mapping[int, float],
        twin: Mapping[int, float],
    ) -> tuple[WeightReading, ...]:
        """The readings, all but the first two by `id(parameter)`."""
        found = []
        for tensor, places in zip(self.tensors, weighed, strict=True):
            key, entry = id(tensor.parameter), tensor.entry
            count = sum(piece[0] for piece in places)
            mean = sum(all_ * numbers[place] for all_, _, place, *_ in places) / count
            square = sum(
                all_ / some * numbers[place] ** 2 for all_, some, _, place, *_ in places
            ) / count  # fmt: skip
            variance = max(square - mean**2, 0.0)
            if len(places[0]) > 4:
                lows = [numbers[piece[4]] for piece in places]
                highs = [numbers[piece[5]] for piece in places]
                # Equal values have std 0, whatever rounding makes of the difference.
                equal = min(lows) == max(highs)
            else:
                equal = variance < _ROUNDING * square
            grad = grads.get(key, math.nan)
            info = tensor.info
            expected: dict[str, Any] = {}
            if entry is not None:
                law = entry.distribution
                expected = {"expected_mean": law.mean, "expected_std": law.std, "drawn": str(law)}
            found.append(
                WeightReading(
                    name=tensor.names[0],
                    numel=count,
                    mean=mean,
                    std=0.0 if equal else math.sqrt(variance),
                    **expected,
                    grad_rms=grad / math.sqrt(tensor.parameter.numel()),
                    finite=math.isfinite(square) and (key not in grads or math.isfinite(grad)),
                    role=str(info.role),
                    module=tensor.module,
                    shape=tuple(tensor.parameter.shape),
                    fan_in=info.fan_in,
                    names=tensor.names,
                    trainable=tensor.parameter.requires_grad,
                    written=entry is not None and entry.written,
                    trained=info.provenance == "pretrained",
                    twins=twin.get(key, math.nan),
                    update=updates.get(key, math.nan),
                    lr=lrs.get(key, math.nan),
                )
            )
        return tuple(found)

    def twins(self, ledger: Ledger, grads: Mapping[int, Tensor]) -> dict[int, int]:
        """Places of the fraction of units that are like another one, by `id(parameter)`."""
        found: dict[int, int] = {}
        for tensor in self.tensors:
            key = id(tensor.parameter)
            if tensor.info.role in _UNITS and key in grads and tensor.parameter.ndim > 1:
                units = 1 if tensor.info.layer == "Conv1D" else tensor.info.axis
                place = twins(ledger, whole(tensor.parameter), whole(grads[key]), units)
                if place is not None:
                    found[key] = place
        return found


_UNITS = (Role.WEIGHT, Role.RECURRENT)


def portion(parameter: Tensor, most: int = _SLICE) -> Tensor:
    """At most about `most` elements of a tensor: evenly spaced rows, as a view.

    Example:
        >>> portion(torch.zeros(512, 512)).shape
        torch.Size([8, 512])
    """
    value = whole(parameter)
    if value.numel() <= most:
        return value
    if value.ndim < 2:
        return value[:: math.ceil(len(value) / most)]
    rows = value.flatten(1)
    wanted = max(1, most // rows.shape[1])
    return rows[:: math.ceil(len(rows) / wanted), :most]
