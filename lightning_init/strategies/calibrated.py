"""Strategies that look at one batch.

LSUV in one forward pass is exact: the output of a layer is linear in its weight, so dividing
weight and output by the output's std inside the pass shows every later layer what it will see.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_init.architecture.arguments import Range
from lightning_init.architecture.calls import tensors
from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.operations import MATRIX, kind
from lightning_init.architecture.params import ParamInfo, Role
from lightning_init.strategies.initializers import ByRole
from lightning_init.strategies.orthogonal import Orthonormal
from lightning_init.strategies.plan import Forward, Plan
from lightning_init.strategies.registry import Strategy, strategy
from lightning_init.strategies.variance import tied_table

_DEAD = 1e-8  # an output whose std is below that times the target has nothing to scale
# Attention has its dropout inside: position of the argument `dropout_p`.
_DROPOUT_P = {F.scaled_dot_product_attention: 4, F.multi_head_attention_forward: 10}


class _UnitVariance(TorchFunctionMode):
    """Scales each listed weight on its first call so that the layer's output has the target std."""

    def __init__(self, weights: dict[int, tuple[str, Tensor]], target: float) -> None:
        super().__init__()
        self.weights, self.target = weights, target
        self.scaled: dict[int, float] = {}
        self.dead: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if kind(func) == "dropout":
            return args[0] if args else kwargs["input"]
        if func in _DROPOUT_P:
            at = _DROPOUT_P[func]
            args = (*args[:at], 0.0, *args[at + 1 :]) if len(args) > at else args
            kwargs = {**kwargs, "dropout_p": 0.0} if "dropout_p" in kwargs else kwargs
        if kind(func) not in MATRIX:
            return func(*args, **kwargs)
        with torch.no_grad():
            out = self._scaled(func, args, kwargs)
        # A step that differentiates needs the product with the weight as it is now.
        return func(*args, **kwargs) if torch.is_grad_enabled() else out

    def _scaled(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor):
            return out
        weight = next((t for t in tensors((args, kwargs)) if id(t) in self.weights), None)
        if weight is None or id(weight) in self.scaled:
            return out
        bias = _bias(func, args, kwargs)
        product = out if bias is None else out - bias
        std = float(product.float().std(correction=0))
        if not std > _DEAD * self.target:
            self.dead.append(self.weights[id(weight)][0])
            return out
        factor = self.target / std
        self.scaled[id(weight)] = factor
        weight.mul_(factor)
        scaled = product * factor
        return scaled if bias is None else scaled + bias


def _bias(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The bias as it was added to the output, broadcastable to it."""
    if func in (torch.addmm, Tensor.addmm):
        added: Tensor = args[0] if args else kwargs["input"]
        return added
    position = 3 if func is F.bilinear else 2
    bias: Tensor | None = args[position] if len(args) > position else kwargs.get("bias")
    if not isinstance(bias, Tensor) or func in (F.linear, F.bilinear):
        return bias
    trailing = (args[1] if len(args) > 1 else kwargs["weight"]).ndim - 2
    return bias.reshape(-1, *[1] * trailing)


@strategy(needs=("batch",), cost="1 forward")
def lsuv(
    scale: Annotated[float, Range(1e-3, 1e3, log=True, search=(0.25, 4.0))] = 1.0,
    include_head: bool = False,
) -> Strategy:
    """Orthogonal, then each weight scaled in execution order to an output std of `scale`.

    One forward pass instead of the paper's two per layer, with the same result: layers that run
    later already see the scaled outputs. Dropout is off. A weight used several times is scaled on
    its first use. Unit variance is not trainability: deep tanh nets want `orthogonal`.

    Args:
        scale: The target std, 1e-3 to 1e3.
        include_head: Whether output layers are scaled too.

    References:
        Mishkin & Matas (2015), algorithm 1, https://arxiv.org/abs/1511.06422

    Example:
        >>> from lightning_init import initialize_
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 2))
        >>> x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
        >>> plan = initialize_(model, "lsuv", seed=0, forward=lambda: model(x))
        >>> round(float(model[:3](x).detach().std(correction=0)), 4)
        1.0
    """

    def scales(info: ParamInfo) -> bool:
        is_head = info.usage is not None and info.usage.is_output and not info.usage.ends_branch
        return info.role in (Role.WEIGHT, Role.RECURRENT) and (include_head or not is_head)

    def calibrate(model: nn.Module, plan: Plan, forward: Forward) -> None:
        wanted = {e.info.name for e in plan if e.written and scales(e.info)}
        mode = _UnitVariance(
            {id(t): (names[0], t) for names, t in named_tensors(model) if names[0] in wanted}, scale
        )
        with mode:
            forward()
        if mode.dead:
            warnings.warn(
                f"lsuv left {', '.join(mode.dead)} as drawn: the output on this batch is constant",
                stacklevel=2,
            )

    rule = Orthonormal(1.0, "LSUV")
    return Strategy(ByRole(weight=rule, embedding=tied_table), calibrate)
