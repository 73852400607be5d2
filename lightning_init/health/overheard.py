"""What one pass of a model shows of its task: what goes in, and the loss that its outputs meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LOSSES = {
    F.cross_entropy,
    F.nll_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.poisson_nll_loss,
    F.soft_margin_loss,
    F.multilabel_soft_margin_loss,
    F.kl_div,
}
# What these losses want instead of plain outputs; cross-entropy and the others take any number.
_WANTED: dict[Callable[..., Any], Callable[[Tensor, int], Tensor]] = {
    F.nll_loss: lambda out, dim: out.log_softmax(dim),
    F.kl_div: lambda out, dim: out.log_softmax(dim),
    F.binary_cross_entropy: lambda out, _: out.sigmoid(),
}


@dataclass(frozen=True)
class LossCall:
    """One call of a loss function.

    Attributes:
        function: The function.
        outputs: What the model gave it.
        arguments: The other arguments: target, weights, ...
        keywords: Likewise.
        value: What came of it, as one number.
    """

    function: Callable[..., Any]
    outputs: Tensor
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    value: float

    @property
    def name(self) -> str:
        """The function's name in words."""
        return str(self.function.__name__).replace("_", " ")

    def of(self, outputs: Tensor) -> Tensor:
        """The same loss of other outputs: plain numbers, as a last linear layer gives them."""
        if self.function in _WANTED:
            outputs = _WANTED[self.function](outputs, 1 if outputs.ndim > 1 else 0)
        found = self.function(outputs, *self.arguments, **self.keywords)
        assert isinstance(found, Tensor)
        return found.mean()


class Overhear(TorchFunctionMode):
    """Listens to a model at work: losses, and the tensors that meet its first parameters.

    Attributes:
        losses: The loss calls, in order.
        inputs: Tensors from outside (of no gradient) that were taken by a call with a parameter.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> with Overhear() as heard:
        ...     loss = F.cross_entropy(model(torch.ones(2, 4)), torch.tensor([0, 2]))
        >>> heard.losses[0].name, tuple(heard.inputs[0].shape)
        ('cross entropy', (2, 4))
    """

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[LossCall] = []
        self.inputs: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the call; remember it if it tells something."""
        kwargs = dict(kwargs or {})
        given = [*args, *kwargs.values()]
        if any(isinstance(one, nn.Parameter) for one in _flat(given)):
            self._take(given)
        out = func(*args, **kwargs)
        if func in _LOSSES and isinstance(out, Tensor):
            outputs = args[0] if args else kwargs.pop("input", None)
            if isinstance(outputs, Tensor) and outputs.requires_grad:
                rest = tuple(_still(one) for one in args[1:])
                named = {key: _still(one) for key, one in kwargs.items()}
                value = float(out.detach().float().mean())
                self.losses.append(LossCall(func, outputs.detach(), rest, named, value))
        return out

    def _take(self, given: Iterable[Any]) -> None:
        # What comes first: what follows are masks, states and offsets.
        tensors = (one for one in _flat(given) if isinstance(one, Tensor))
        one = next((one for one in tensors if not isinstance(one, nn.Parameter)), None)
        if one is None or one.requires_grad or not one.ndim:
            return
        if all(one is not known for known in self.inputs):
            self.inputs.append(one)


def _flat(given: Iterable[Any]) -> Iterable[Any]:
    for one in given:
        if isinstance(one, (list, tuple)):
            yield from one
        else:
            yield one


def _still(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
