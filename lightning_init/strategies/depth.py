"""What one forward and one backward pass show of the depth of a model, as a few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_init.architecture.calls import tensors
from lightning_init.architecture.preserve import preserved
from lightning_init.architecture.probe import Probe, euclidean
from lightning_init.architecture.readings import LayerReading
from lightning_init.strategies.plan import Forward


@dataclass(frozen=True, slots=True)
class Reading:
    """What one forward and one backward pass show of a model; NaN where they show nothing.

    Attributes:
        forward: ln of the outputs' std at the last layer over the first.
        backward: ln of the gradient's norm at the first layer over the last.
        steps: Layers from the first to the last.
        largest: Largest std of an output.
        loss: What `forward` returned, if that is a single number.
        finite: Whether outputs, gradients and loss are numbers.
        gradient: Whether some layer's output has a gradient, the head aside.
    """

    forward: float
    backward: float
    steps: int
    largest: float
    loss: float
    finite: bool
    gradient: bool

    @property
    def chi(self) -> float:
        """Growth of the squared gradient norm per layer, towards the input."""
        return _power(2 * self.backward / self.steps)

    @property
    def growth(self) -> float:
        """Growth of the outputs' std per layer."""
        return _power(self.forward / self.steps)

    @property
    def distance(self) -> float:
        """E-folds from signals that cross the depth unchanged."""
        fading = math.log(1 + self.steps)  # a 1/depth law does no harm
        both = (abs(self.forward) - fading, abs(self.backward) - fading, abs(self.weights))
        return max(0.0, *(0.0 if math.isnan(folds) else folds for folds in both))

    @property
    def weights(self) -> float:
        """Ln of gradient times output at the first layer over the last."""
        same = self.forward == self.backward  # also if both are infinite
        return 0.0 if same else self.backward - self.forward


def read(model: nn.Module, forward: Forward, enough: Sequence[Tensor] | None = None) -> Reading:
    """What one forward and one backward pass show; the model is afterwards as before.

    Args:
        model: The model.
        forward: A call without arguments that runs it once.
        enough: The parameters whose gradients are computed, None for all of them.

    Example:
        >>> net = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(4)])
        >>> for layer in net:
        ...     _ = nn.init.constant_(layer.weight, 1.0)  # twice the input's sum, four times, ...
        >>> found = read(net, lambda: net(torch.tensor([[1.0, 2.0], [3.0, 5.0]])))
        >>> round(found.growth, 5), round(found.chi, 5)
        (2.0, 4.0)
    """
    with preserved(model):
        probe = Probe(model)
        probe.start(full=True, follow=False)
        try:
            with torch.enable_grad():
                out = forward()
                loss = _scalar(out)
                start = _direction(out) if loss is None else loss
            listed = model.parameters() if enough is None else enough
            wanted = [p for p in listed if p.requires_grad]
            if start is not None and start.requires_grad and wanted:
                # Not differentiable, or the step ran its own backward pass: what has been read.
                with suppress(RuntimeError):
                    torch.autograd.backward(start, inputs=wanted)
            grads = [p.grad.detach() for p in wanted if p.grad is not None]
            layers = probe.layers()
        finally:
            probe.stop()
        numbers = [euclidean(grad) for grad in grads]
        sane = all(math.isfinite(float(number)) for number in numbers)
    return _reading(
        layers, math.nan if loss is None else float(loss.detach()), sane and _finite(loss)
    )


def _reading(layers: tuple[LayerReading, ...], loss: float, finite: bool) -> Reading:
    chain = [layer for layer in layers if layer.group]
    if any(not math.isnan(layer.grad_norm) for layer in chain):
        chain = [layer for layer in chain if not math.isnan(layer.grad_norm)]
    rescaled = any(layer.rescaled for layer in chain)
    # Norm layers set the outputs' scale anew, and the gradient's inversely: their product counts.
    outputs = [1.0 if rescaled else layer.std for layer in chain]
    grads = [layer.grad_norm * (layer.std if rescaled else 1.0) for layer in chain]
    return Reading(
        forward=_folds(outputs),
        backward=_folds(grads[::-1]),
        steps=max(1, len(chain) - 1),
        largest=max((layer.std for layer in layers), default=math.nan),
        loss=loss,
        finite=finite and all(layer.finite for layer in layers),
        gradient=any(layer.grad_norm > 0 for layer in chain or layers),
    )


def _folds(values: list[float]) -> float:
    """Ln of the last value over the first; leading zeros are those of a head or a branch's end.

    Example:
        >>> _folds([0.0, 1.0, math.e, math.e**3]), _folds([1.0, 0.0]), _folds([0.0, 0.0])
        (3.0, -inf, nan)
    """
    some = [value for i, value in enumerate(values) if any(values[: i + 1])]
    if len(some) < 2 or not all(map(math.isfinite, some)):
        return math.nan
    return math.log(some[-1]) - math.log(some[0]) if some[-1] else -math.inf


def _scalar(out: object) -> Tensor | None:
    """The loss among what a forward pass returned."""
    found = out.get("loss") if isinstance(out, Mapping) else out
    real = isinstance(found, Tensor) and found.is_floating_point() and found.numel() == 1
    return found.reshape(()) if real and isinstance(found, Tensor) else None


def _direction(out: Any) -> Tensor | None:
    """A fixed random direction in what a forward pass returned, to send a gradient back."""
    plain = out.to_tuple() if hasattr(out, "to_tuple") else out
    generator = torch.Generator().manual_seed(0)
    total: Tensor | None = None
    for tensor in tensors(plain):
        if tensor.is_floating_point() and tensor.requires_grad and tensor.numel():
            along = torch.randn(tensor.shape, generator=generator) / math.sqrt(tensor.numel())
            part = (tensor.float() * along.to(tensor.device)).sum()
            total = part if total is None else total + part.to(total.device)
    return total


def _finite(loss: Tensor | None) -> bool:
    return loss is None or math.isfinite(float(loss.detach()))


def _power(exponent: float) -> float:
    return math.exp(min(exponent, 700.0))
