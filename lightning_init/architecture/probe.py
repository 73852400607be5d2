"""Reads the signals of a model at work: outputs, their gradients, weights.

Hooks sit on the modules that own weights and reduce each output at once, on its device, to a few
numbers; the host sees them in one transfer per sampled step. Reductions are the cheap ones: mean,
norm, minimum and maximum, sign. Outputs are never kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.calls import readable, tensors
from lightning_init.architecture.layers import module_traits
from lightning_init.architecture.names import named_tensors, named_weights, unwrap
from lightning_init.architecture.params import ParamInfo
from lightning_init.architecture.readings import LayerReading, WeightReading
from lightning_init.architecture.watched import repeated_blocks, watched

_ROWS = 16  # a monitored step reads the first 1/16 of the batch, at least that many rows


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


class Probe:
    """Hooks that read a model's layers while `active`; `remove` leaves no trace.

    Args:
        model: The model.
        full: Read all rows of every output instead of the leading ones.
        sample: Also keep a few values of each output, for histograms.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> probe = Probe(model, full=True)
        >>> probe.active = True
        >>> _ = model(torch.ones(2, 4))
        >>> [reading.name for reading in probe.layers()]
        ['0', '2']
        >>> probe.remove()
    """

    def __init__(self, model: nn.Module, *, full: bool = False, sample: bool = False) -> None:
        self.active = False
        self.full, self.sample = full, sample
        self.samples: dict[str, Tensor] = {}
        self._order: dict[str, tuple[Tensor, int]] = {}
        self._grads: dict[str, tuple[Tensor, int]] = {}
        self._kinds: dict[str, tuple[str, str]] = {}
        self._handles = []
        # Blocks add to a stream; single layers with norm layers between have a scale of their own.
        self._rescaled = "norm" in module_traits(unwrap(model)) and not repeated_blocks(model)
        for name, module, group in watched(unwrap(model)):
            self._kinds[name] = (type(module).__name__, group)
            self._handles.append(module.register_forward_hook(self._hook(name)))

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def read(module: nn.Module, args: Any, out: Any) -> None:  # noqa: ARG001
            # Inside a backward pass this is a recomputation of a checkpointed segment.
            if not self.active or torch._C._current_graph_task_id() != -1:
                return
            first = next(iter(tensors(_plain(out))), None)
            if (
                first is None
                or not first.is_floating_point()
                or not first.numel()
                or not readable(first)
            ):
                return
            value = first.detach()
            if not self.full and value.ndim > 1:
                value = value[: max(_ROWS, value.shape[0] // _ROWS)]
            if name not in self._order:  # a module used twice is read on its first call
                self._order[name] = (_reduce(value), value.numel())
                if self.sample:
                    self.samples[name] = value.flatten()[:2048].float().clone()
                if first.requires_grad:
                    size = first.numel()
                    first.register_hook(  # type: ignore[no-untyped-call]
                        lambda grad: self._read_grad(name, grad, size)
                    )

        return read

    def _read_grad(self, name: str, grad: Tensor, size: int) -> None:
        self._grads[name] = (euclidean(grad), size)

    def layers(self) -> tuple[LayerReading, ...]:
        """The readings since the last call, in execution order; one transfer to the host."""
        if not self._order:
            return ()
        rows = torch.stack([stats for stats, _ in self._order.values()]).tolist()
        grads = {name: (float(norm), size) for name, (norm, size) in self._grads.items()}
        found = []
        for name, (mean, rms, low, high, nonzero) in zip(self._order, rows, strict=True):
            norm, size = grads.get(name, (math.nan, 1))
            kind, group = self._kinds[name]
            found.append(
                LayerReading(
                    name=name,
                    kind=kind,
                    group=group,
                    mean=mean,
                    std=math.sqrt(max(rms**2 - mean**2, 0.0)) if math.isfinite(rms) else rms,
                    rms=rms,
                    absmax=max(abs(low), abs(high)),
                    zeros=1 - nonzero,
                    grad_norm=norm,
                    grad_rms=norm / math.sqrt(size),
                    rescaled=self._rescaled,
                )
            )
        self._order, self._grads = {}, {}
        return tuple(found)

    def remove(self) -> None:
        """Take every hook off the model."""
        self.active = False
        for handle in self._handles:
            handle.remove()
        self._handles = []


def weights(
    model: nn.Module,
    plan: Iterable[PlannedEntry] | None = None,
    grads: dict[int, Tensor] | None = None,
) -> tuple[WeightReading, ...]:
    """Statistics of every floating-point parameter, beside what a plan promised for it.

    Args:
        model: The model.
        plan: The plan that was applied, if any.
        grads: `id(parameter)` -> gradient, or its norm; None reads `parameter.grad`.

    Returns:
        One reading per tensor, one transfer to the host for all.
    """
    promised = {entry.info.names: entry for entry in plan or ()}
    kept: list[tuple[tuple[str, ...], nn.Parameter, Tensor]] = []
    weights = named_weights(model)
    for names, parameter in named_tensors(model):
        if is_lazy(parameter) or parameter.is_meta or not parameter.is_floating_point():
            continue
        if parameter.numel():
            entry = promised.get(names)
            value = weights[names][0].value() if names in weights else parameter.detach()
            kept.append((names, parameter, _without_padding(value, entry)))
    if not kept:
        return ()
    nothing = torch.tensor(math.nan)
    rows = []
    for _, parameter, values in kept:
        grad = parameter.grad if grads is None else grads.get(id(parameter))
        low, high = torch.aminmax(values)
        pieces = (
            values.mean(dtype=torch.float32),
            euclidean(values),
            low.float(),
            high.float(),
            nothing.to(values.device) if grad is None else euclidean(grad),
        )
        rows.append(torch.stack([piece.to(values.device) for piece in pieces]))
    found = []
    table = torch.stack([row.to(rows[0].device) for row in rows]).tolist()
    for (names, parameter, values), (mean, norm, low, high, grad) in zip(kept, table, strict=True):
        n = values.numel()
        square = norm**2 / n
        entry = promised.get(names)
        has_grad = parameter.grad is not None if grads is None else id(parameter) in grads
        found.append(
            WeightReading(
                name=names[0],
                numel=n,
                mean=mean,
                # Equal values have std 0, whatever rounding makes of the difference.
                std=0.0 if low == high else math.sqrt(max(square - mean**2, 0.0)),
                expected_mean=entry.distribution.mean if entry else math.nan,
                expected_std=entry.distribution.std if entry else math.nan,
                drawn=str(entry.distribution) if entry else "",
                grad_rms=grad / math.sqrt(parameter.numel()),
                finite=math.isfinite(norm) and (not has_grad or math.isfinite(grad)),
            )
        )
    return tuple(found)


def _plain(out: Any) -> Any:
    return out.to_tuple() if hasattr(out, "to_tuple") else out


def _reduce(value: Tensor) -> Tensor:
    low, high = torch.aminmax(value)
    return torch.stack(
        [
            value.mean(dtype=torch.float32),
            euclidean(value) / math.sqrt(value.numel()),
            low.float(),
            high.float(),
            value.sign().abs().mean(dtype=torch.float32),
        ]
    )


def euclidean(value: Tensor) -> Tensor:
    """Euclidean norm as float32, summed in float32 or better."""
    dense = value.coalesce().values() if value.is_sparse else value
    wide = None if dense.dtype in (torch.float64, torch.complex128) else torch.float32
    found: Tensor = torch.linalg.vector_norm(dense.detach(), dtype=wide)
    return found.float()


def _without_padding(values: Tensor, entry: PlannedEntry | None) -> Tensor:
    if entry is None or entry.info.padding_idx is None or values.shape[0] < 2:
        return values
    rows = torch.arange(values.shape[0], device=values.device)
    return values[rows != entry.info.padding_idx % values.shape[0]]
