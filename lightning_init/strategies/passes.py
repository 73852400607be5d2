"""Forward passes under which the layers of a model are shown or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.params import ParamInfo, Role
from lightning_init.architecture.trace import eager
from lightning_init.strategies.one_pass import OnePass, Target, Visit
from lightning_init.strategies.plan import Forward, Plan, PlanEntry

V = TypeVar("V", bound=Visit)


def is_layer(info: ParamInfo, include_head: bool) -> bool:
    """Whether a tensor is a weight that a calibration on outputs is about."""
    head = info.usage is not None and info.usage.is_output and not info.usage.ends_branch
    return info.role in (Role.WEIGHT, Role.RECURRENT) and (include_head or not head)


def targets(
    model: torch.nn.Module,
    plan: Plan,
    include_head: bool,
    goal: Callable[[ParamInfo], float] = lambda info: 1.0,  # noqa: ARG005
) -> list[Target]:
    """The weights that a plan draws and a calibration on outputs may scale.

    What is drawn as zeros stays zero: there is nothing to scale.
    """

    def wanted(entry: PlanEntry) -> bool:
        return entry.written and is_layer(entry.info, include_head) and entry.distribution.std != 0

    infos = {entry.info.name: entry.info for entry in plan if wanted(entry)}
    return [
        Target(info.name, tensor, info.axis, info.parts, goal(info))
        for names, tensor in named_tensors(model)
        if (info := infos.get(names[0])) is not None
    ]


NOTHING = "nothing to calibrate: all is kept, 0 or an output layer (include_head=True)"


def shown(forward: Forward, listed: list[Target], visit: Visit) -> object:
    """Run a forward pass whose layers are shown; nothing is changed."""
    with _open(), OnePass(listed, visit, writes=False):
        return forward()


def changed(forward: Forward, listed: list[Target], made: Callable[[], V]) -> V:
    """Run a forward pass whose layers are changed, without a graph unless the pass needs one.

    Args:
        forward: A call without arguments that runs the model once.
        listed: The weights.
        made: Makes what decides; once more if the pass turns out to differentiate by itself.

    Returns:
        What decided.
    """
    visit = made()
    try:
        with _open(), OnePass(listed, visit), torch.no_grad():
            forward()
    except RuntimeError:
        visit = made()
        with _open(), OnePass(listed, visit), torch.enable_grad():
            forward()
    return visit


def few(names: Iterable[str]) -> str:
    """Names in a few words.

    Example:
        >>> few(["a", "b", "c"])
        'a and 2 more'
    """
    first, *more = names
    return f"{first} and {len(more)} more" if more else first


@contextmanager
def _open() -> Iterator[None]:
    """A compiled model, or one that is evaluated, runs its own Python code."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eager():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
