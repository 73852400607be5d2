"""What a scheme must leave as it is: values, modules, hooks, flags, global random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.arguments import Parameter
from lightning_init.architecture.names import named_tensors
from lightning_init.architecture.plain import plain


def holds(fact: bool, text: str) -> None:
    """Raise an `AssertionError` with a text unless something holds."""
    if not fact:
        raise AssertionError(text)


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that the layers compute with, also where others are behind them."""
    with plain(model):
        return {names[0]: tensor.detach().clone() for names, tensor in named_tensors(model)}


def state_of(model: nn.Module) -> list[tuple[int, Tensor]]:
    """Every parameter and buffer: which object it is, and a copy of its values."""
    found = [*model.parameters(), *model.buffers()]
    return [(id(t), t if is_lazy(t) or t.is_meta else t.detach().clone()) for t in found]


def is_as(model: nn.Module, before: list[tuple[int, Tensor]]) -> bool:
    """Whether every parameter and buffer is the same object with the same values."""
    now = state_of(model)
    return [at for at, _ in now] == [at for at, _ in before] and all(
        one is two or torch.equal(one.nan_to_num(), two.nan_to_num())
        for (_, one), (_, two) in zip(now, before, strict=True)
    )


def structure_of(model: nn.Module) -> list[object]:
    """Modules, their flags and how many hooks they have."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found: list[object] = [
        (name, id(module), module.training, *(len(getattr(module, at)) for at in hooks))
        for name, module in model.named_modules()
    ]
    return found + [(name, p.requires_grad) for name, p in model.named_parameters()]


def rng_of() -> tuple[object, ...]:
    """The state of the global random generators."""
    return random.getstate(), tuple(torch.get_rng_state().tolist())


def check_rng(name: str, before: tuple[object, ...], doing: str) -> None:
    """The global random generators are where they were."""
    holds(
        rng_of() == before,
        f"{name}: {doing} moved a global random generator: users' data would come in another "
        "order; draw from the generator that `sample` gets",
    )


@contextmanager
def other_rng() -> Iterator[None]:
    """Other global random states than a model's author may have chosen, for a while."""
    own, other = random.getstate(), torch.get_rng_state()
    random.seed(20_07_31)
    torch.manual_seed(20_07_31)
    try:
        yield
    finally:
        random.setstate(own)
        torch.set_rng_state(other)


def another(parameter: Parameter) -> object:
    """A legal value that is not the default."""
    if parameter.choices:
        return parameter.choices[-1]
    if parameter.kind is bool:
        return not parameter.default
    if parameter.kind is str:
        return f"{parameter.default}other"
    if parameter.range is None:
        return parameter.kind(parameter.default + 1)
    return parameter.kind(parameter.range.high)


def illegal(parameter: Parameter) -> list[object]:
    """Values that must be refused."""
    if parameter.converted is not None:
        return [object()]
    if parameter.kind is str and not parameter.choices:
        return [3]
    found: list[object] = ["nonsense"]
    if parameter.range is not None:
        low, high = parameter.range.low, parameter.range.high
        found += [low - 1e-6 * max(1, abs(low)), high + 1e-6 * max(1, abs(high))]
    return found
