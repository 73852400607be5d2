"""Admin's profile: the variance of every residual branch, measured in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_init.architecture.calls import tensors
from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.opened import OPENED
from lightning_init.architecture.operations import ADDITIONS, NORMS, kind
from lightning_init.architecture.params import Role
from lightning_init.strategies.calibration import Calibration
from lightning_init.strategies.dropout import without_dropout
from lightning_init.strategies.gate import Accept, gated
from lightning_init.strategies.plan import Forward, Plan
from lightning_init.strategies.registry import Calibrator


class Profile(TorchFunctionMode):
    """Records what is multiplied with each branch's scale, and what is added to the first product.

    Args:
        scales: Id of a scale -> its index of a branch.

    Attributes:
        variances: (index of the scale's branch, Var f), in execution order.
        inputs: Index of a branch -> Var x of the skip path that it is added to.
        normalized: Branches whose sum a norm layer takes.
    """

    def __init__(self, scales: dict[int, int]) -> None:
        super().__init__()
        self.scales = scales
        self.variances: list[tuple[int, float]] = []
        self.inputs: dict[int, float] = {}
        self.normalized: set[int] = set()
        self._products: dict[int, int] = {}
        self._sums: dict[int, int] = {}
        self._alive: list[Tensor] = []  # ids are unique among the living

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs, name = kwargs or {}, kind(func)
        if func in OPENED:
            with self:
                return OPENED[func](*args, **kwargs)
        if name == "dropout":
            return args[0] if args else kwargs["input"]
        args, kwargs = without_dropout(func, name, args, kwargs)
        given = list(tensors((args, kwargs)))
        before = {id(tensor): _variance(tensor) for tensor in given if self._matters(name, given)}
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self._follow(name, given, before, out)
        return out

    def _matters(self, name: str, given: list[Tensor]) -> bool:
        ids = {id(tensor) for tensor in given}
        return bool(ids & self.scales.keys()) or (
            name in ADDITIONS and bool(ids & self._products.keys())
        )

    def _follow(
        self, name: str, given: list[Tensor], before: dict[int, float], out: Tensor
    ) -> None:
        scale = next((t for t in given if id(t) in self.scales), None)
        others = [tensor for tensor in given if tensor is not scale]
        product = next((t for t in given if id(t) in self._products), None)
        if scale is not None and not others:  # reshaped or cast
            self._keep(self.scales, out, self.scales[id(scale)])
        elif scale is not None:
            branch = self.scales[id(scale)]
            value = max(others, key=lambda tensor: tensor.numel())
            self.variances.append((branch, before[id(value)]))
            self._keep(self._products, out, branch)
        elif product is not None and name in ADDITIONS:
            branch = self._products[id(product)]
            skip = next((t for t in given if t is not product), product)
            self.inputs.setdefault(branch, before[id(skip)])
            self._keep(self._sums, out, branch)
        elif name in NORMS:
            self.normalized |= {self._sums[id(t)] for t in given if id(t) in self._sums}

    def _keep(self, where: dict[int, int], tensor: Tensor, branch: int) -> None:
        where[id(tensor)] = branch
        self._alive.append(tensor)


def omegas(
    variances: Iterable[tuple[int, float]], inputs: dict[int, float], streams: tuple[int, ...]
) -> dict[int, float]:
    """Omega of each branch: 1 at first, then the root of all variances added before.

    Args:
        variances: (branch, Var f), in execution order.
        inputs: Branch -> Var x; of the first branch of a stream, Var x_0.
        streams: The stream of each branch.

    Example:
        >>> omegas([(0, 3.0), (1, 5.0), (2, 7.0)], {0: 1.0}, (0, 0, 0))
        {0: 1.0, 1: 2.0, 2: 3.0}
    """
    found: dict[int, float] = {}
    total: dict[int, float] = {}
    for branch, variance in variances:
        stream = streams[branch]
        omega = math.sqrt(total[stream]) if stream in total else 1.0
        found[branch] = max(omega, found.get(branch, 0.0))
        total[stream] = total.get(stream, inputs.get(branch, 1.0)) + variance
    return found


def profile(streams: tuple[int, ...], accept: Accept) -> Calibrator:
    """The calibration that writes 1 / omega into the scale of each residual branch.

    Args:
        streams: The stream of each branch of the model.
        accept: Whether the gate may take the result back.
    """

    def calibrate(model: nn.Module, plan: Plan, forward: Forward) -> list[Calibration]:
        branches = {
            entry.info.names: entry.info.usage.branch
            for entry in plan
            if entry.written and entry.info.role is Role.BRANCH_SCALE and entry.info.usage
        }
        scales = {names: t for names, t in named_tensors(model) if names in branches}
        mode = Profile({id(tensor): branches[names] for names, tensor in scales.items()})

        def work() -> tuple[str, float, float, str]:
            with mode, torch.no_grad():
                forward()
            found = omegas(mode.variances, mode.inputs, streams)
            with torch.no_grad():
                for names, tensor in scales.items():
                    tensor.fill_(1 / found.get(branches[names], 1.0))
            passes = "1 forward to profile, 2 with backward to compare"
            return "largest omega", 1.0, max(found.values(), default=1.0), passes

        done = gated("admin", model, plan, forward, work, accept)
        why = "; ".join(filter(None, (done.why, *_remarks(mode, len(scales)))))
        return [replace(done, why=why)]

    return calibrate


def _remarks(mode: Profile, scales: int) -> Iterator[str]:
    """What was not as Admin expects it."""
    reached = {branch for branch, _ in mode.variances}
    if len(reached) < scales:
        yield f"{scales - len(reached)} scales were not reached and stay at 1"
    if other := len(reached - mode.normalized):
        yield f"{other} branches are not followed by a norm layer: Admin is for Post-LN"


def _variance(tensor: Tensor) -> float:
    return float(tensor.detach().float().var(correction=0)) if tensor.numel() else 0.0
