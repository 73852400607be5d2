"""What the schemes share that learn the scale of each tensor by gradient descent.

`Loss` is the user's loss as a function of the weights alone, differentiable as often as wanted;
`scaling` writes factors times what was drawn, and puts back what was drawn if anything goes wrong.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lightning_init.architecture.calls import tensors
from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.params import ParamInfo
from lightning_init.architecture.preserve import keep_rng
from lightning_init.strategies.needs import UnsuitableError, unsuitable
from lightning_init.strategies.plan import Forward, Plan

_NEAREST = "lsuv"  # also calibrates, and needs no loss


class Loss:
    """The loss as a function of the weights: same random numbers in each call, no autocast.

    Attributes:
        parameters: All that training would change.

    Args:
        scheme: Who asks, for errors.
        model: The model behind `forward`.
        forward: A call without arguments that returns the loss of a batch.
    """

    def __init__(self, scheme: str, model: nn.Module, forward: Forward) -> None:
        self.scheme = scheme
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._forward, self._rewind = forward, keep_rng()

    def __call__(self) -> Tensor:
        """One forward pass.

        Raises:
            UnsuitableError: If it does not give a scalar that depends on the parameters.
        """
        self._rewind()
        with torch.enable_grad(), _Unmixed():
            given = self._forward()
        self._rewind()  # who looks at the model next sees the same numbers, too
        loss = given.get("loss") if isinstance(given, Mapping) else given
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            raise self.unsuitable(f"needs a loss, one number, but forward() gave {_words(given)}")
        if not loss.requires_grad:
            raise self.unsuitable(
                "differentiates the loss, but what forward() gave has no graph (computed under "
                "no_grad, detached, or all is frozen)"
            )
        return loss.reshape(())

    def gradient(self, of: Tensor) -> list[Tensor | None]:
        """The gradient of a loss with its graph; None where it does not depend on a parameter.

        Raises:
            UnsuitableError: If it depends on none.
        """
        found = self.gradients(of, self.parameters, create_graph=True)
        if all(gradient is None for gradient in found):
            raise self.unsuitable("needs a loss of the model, but it depends on no parameter")
        return found

    def gradients(
        self, of: Tensor, to: Sequence[Tensor], *, create_graph: bool = False
    ) -> list[Tensor | None]:
        """Gradients of a scalar; None where it does not depend on a tensor.

        Raises:
            UnsuitableError: If a layer cannot be differentiated that often.
        """
        if not of.requires_grad or not to:  # a linear function: nothing is left to differentiate
            return [None] * len(to)
        try:
            found = torch.autograd.grad(of, to, create_graph=create_graph, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise self._only_once(str(error)) from error
        return list(found)

    def gradients_again(
        self, of: Tensor, to: Sequence[Tensor], *, create_graph: bool = False
    ) -> list[Tensor | None]:
        """As `gradients`, of something that was made from gradients.

        Raises:
            UnsuitableError: If a layer's gradient has none: torch passes over a function that is
                `once_differentiable` in silence, as if its gradient were constant.
        """
        if _ends_in_error(of):
            raise self._only_once("a function is marked with @once_differentiable")
        return self.gradients(of, to, create_graph=create_graph)

    def check_finite(self, **values: float) -> None:
        """Make sure that there is something to start from.

        Raises:
            UnsuitableError: If a value is not finite.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise unsuitable(
                    f"{self.scheme} follows gradients, but with what was drawn the "
                    f"{name.replace('_', ' ')} is {value}: draw smaller weights (scale=0.1), or ",
                    _NEAREST,
                )

    def _only_once(self, why: str) -> UnsuitableError:
        return unsuitable(
            f"{self.scheme} differentiates several times, which this model does not support "
            f"({why}): ",
            _NEAREST,
        )

    def unsuitable(self, text: str) -> UnsuitableError:
        """The error for a `forward` that cannot be used."""
        return unsuitable(
            f"{self.scheme} {text}: pass forward=lambda: loss(model(x), y), or ", _NEAREST
        )


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Choose kernels that have second derivatives: math attention, no cuDNN for RNNs, no compiler.

    Example:
        >>> with twice_differentiable(nn.LSTM(2, 2)):
        ...     torch.backends.cudnn.enabled
        False
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:  # whoever compiled something has imported it
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


class Scaling(NamedTuple):
    """Tensors that are scaled, each with what was drawn."""

    parameters: list[nn.Parameter]
    drawn: list[Tensor]

    @torch.no_grad()
    def write(self, factors: Iterable[float]) -> None:
        """Set each tensor to a factor times what was drawn."""
        for parameter, drawn, factor in zip(self.parameters, self.drawn, factors, strict=True):
            parameter.copy_(drawn * factor)

    @torch.no_grad()
    def slopes(self, gradients: Sequence[Tensor | None]) -> list[float]:
        """Derivatives with respect to the factors, from those with respect to the tensors."""
        return [
            0.0 if gradient is None else float((gradient * drawn).sum())
            for gradient, drawn in zip(gradients, self.drawn, strict=True)
        ]


@contextmanager
def scaling(
    scheme: str, model: nn.Module, plan: Plan, scales: Callable[[ParamInfo], bool], what: str
) -> Iterator[Scaling]:
    """The tensors that a plan writes and a scheme scales; an error puts back what was drawn.

    A tensor of zeros stays one whatever the factor, so it is left out; frozen ones too.

    Args:
        scheme: Who scales.
        model: The model, drawn.
        plan: Its plan.
        scales: Which of the tensors that the plan writes are meant.
        what: These in words, for the error.

    Raises:
        UnsuitableError: If there is none.
    """
    wanted = {e.info.name for e in plan if e.written and scales(e.info)}
    parameters = [
        tensor
        for names, tensor in named_tensors(model)
        if names[0] in wanted and tensor.requires_grad and bool(tensor.any())
    ]
    if not parameters:
        raise unsuitable(
            f"{scheme} scales {what}, but the plan draws none that is trained, not 0 "
            "and free to be scaled: ",
            _NEAREST,
        )
    found = Scaling(parameters, [p.detach().clone() for p in parameters])
    try:
        yield found
    except BaseException:  # an interrupt too
        found.write([1.0] * len(parameters))
        raise


class _Unmixed(TorchFunctionMode):
    """Keeps autocast off, also where code inside turns it on: derivatives need float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        found = next(tensors((args, kwargs)), None)
        device = "cpu" if found is None else found.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return func(*args, **kwargs)
        try:
            with torch.autocast(device, enabled=False):
                return func(*args, **kwargs)
        except RuntimeError:  # the user's code counts on autocast to join two types
            return func(*args, **kwargs)


def _ends_in_error(of: Tensor) -> bool:
    """Whether a part of a graph may not be differentiated."""
    todo, seen = [of.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            return True
        seen.add(node)
        todo += [before for before, _ in node.next_functions]
    return False


def _words(given: object) -> str:
    if isinstance(given, Mapping):
        return f"a {type(given).__name__} with the keys {', '.join(map(str, given)) or 'none'}"
    if isinstance(given, Tensor):
        return f"a tensor of shape {tuple(given.shape)} and type {given.dtype}"
    return "None" if given is None else f"a {type(given).__name__}"
