"""Running a model once for its tape, and saying what went wrong if that fails."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from lightning_init.architecture.calls import Op
from lightning_init.architecture.preserve import preserved
from lightning_init.architecture.sharded import hush, in_use
from lightning_init.architecture.tape import Tape


class ForwardError(RuntimeError):
    """The forward pass that should show a model's structure failed."""


class ModuleCall(NamedTuple):
    """One call of a module.

    Attributes:
        module: The module.
        start: Number of calls on the tape when it began.
        stop: Number of calls on the tape when it ended.
        out: The call that made its result, or the first tensor of it; -1 if it is neither.
    """

    module: nn.Module
    start: int
    stop: int
    out: int


def trace(
    model: nn.Module,
    forward: Callable[[], object],
    modules: list[ModuleCall] | None = None,
) -> list[Op]:
    """Run `forward` once and return its calls; the model is afterwards as before.

    Args:
        model: The model whose parameters are of interest.
        forward: A call without arguments that runs the model once.
        modules: Takes the calls of the model's modules, in the order in which they end.

    Returns:
        The calls in execution order. Tensors that come from outside appear as calls `input`.

    Raises:
        ForwardError: If the forward pass fails; it names the module and the call.
        ValueError: If the forward pass used no parameter of the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
        >>> ops = trace(model, lambda: model(torch.ones(1, 2)))
        >>> [op.kind for op in ops if op.inputs]
        ['linear', 'tanh']
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ForwardError(
            "a TorchScript module does not show its calls: analyze the model before it is "
            "scripted, or leave `forward` out"
        )
    tape = Tape(model.parameters(), _constants(model), in_use(model))
    names = {id(module): name for name, module in model.named_modules()}
    within: list[nn.Module] = []
    starts: list[int] = []

    def enter(module: nn.Module, args: object) -> None:  # noqa: ARG001
        if id(module) in names:
            tape.inside = True
            within.append(module)
            starts.append(len(tape.ops))

    def leave(module: nn.Module, args: object, out: object) -> None:  # noqa: ARG001
        if within and within[-1] is module:
            within.pop()
            start = starts.pop()
            if modules is not None:
                first = out[0] if isinstance(out, (tuple, list)) and out else out
                made = tape.made_by(first) if isinstance(first, Tensor) else -1
                modules.append(ModuleCall(module, start, len(tape.ops), made))

    hooks = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave))
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer hides its parts
    try:
        guard = tape.guard
        with preserved(model, guard.parameters), guard.watching(), eager():
            hush(model)
            with tape:
                forward()
    except Exception as error:
        at = ""
        if within:
            at = f" in {names[id(within[-1])] or 'the model'} ({type(within[-1]).__name__})"
        call = f", at {tape.failed[0]}" if tape.failed and tape.failed[1] is error else ""
        raise ForwardError(
            f"the forward pass failed{at}{call}: {type(error).__name__}: {error}. Pass a call that "
            "runs this very model once on a batch that fits it, e.g. forward=lambda: model(batch); "
            "the model is as it was"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for hook in hooks:
            hook.remove()
    if not any(op.weights for op in tape.ops):
        raise ValueError(
            "the forward pass used none of the model's parameters: pass a `forward` that runs "
            "this very model once, e.g. forward=lambda: model(batch)"
        )
    return tape.ops


def _constants(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that belong to the model but are no parameters."""
    yield from model.buffers()
    for module in model.modules():
        yield from (value for value in module.__dict__.values() if isinstance(value, Tensor))


@contextmanager
def eager() -> Iterator[None]:
    """A compiled model runs its own Python code, so that every call is seen."""
    if "torch._dynamo" not in sys.modules:  # importing it takes a second, and nothing is compiled
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        # Our hooks on all modules see a compiled module and the one inside: both are meant.
        warnings.filterwarnings("ignore", message=".*when there are global hooks on modules")
        yield
