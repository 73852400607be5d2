"""Several schemes, one on top of the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from torch import nn

from lightning_init.architecture.arguments import Converted
from lightning_init.architecture.params import Architecture
from lightning_init.strategies.auto import TABLE
from lightning_init.strategies.initializers import Initializer, OnTop
from lightning_init.strategies.registry import Calibrator, Strategy, strategy
from lightning_init.strategies.spec import InitSpec


def modifier(change: Callable[[Initializer], Initializer], **others: Any) -> Strategy:
    """A scheme that changes what others decide; alone, it changes the table of `auto`.

    Args:
        change: From the initializer below to the one that results.
        others: Further fields of the `Strategy`.

    Example:
        >>> from lightning_init.strategies.initializers import BranchScaled
        >>> modifier(BranchScaled).on_top is BranchScaled
        True
    """
    return Strategy(change(TABLE), on_top=change, **others)


def _steps(value: object) -> tuple[InitSpec, ...]:
    listed = list(value) if isinstance(value, (list, tuple)) else []
    if not listed:
        raise ValueError(f"got {value!r}; for example [orthogonal, zero_gamma, lsuv]")
    steps = []
    for item in listed:
        spec = InitSpec(item) if isinstance(item, str) else item
        spec = InitSpec.from_dict(spec) if isinstance(spec, dict) else spec
        if not isinstance(spec, InitSpec):
            raise ValueError(f"a step must be a strategy's name or a spec, but got {item!r}")
        if spec.seed is not None:
            raise ValueError(f"a step takes no seed of its own, but got seed={spec.seed}")
        steps.append(spec)
    return tuple(steps)


Steps = Annotated[tuple[InitSpec, ...], Converted(_steps, "a list of strategies or specs")]


_ALONE = (InitSpec("auto"),)


@strategy(search=False)
def chain(steps: Steps = _ALONE) -> Strategy:
    """Each step on top of those before: later ones replace, scale or calibrate what is there.

    A step that decides by itself replaces all that it does not keep; one that changes others
    (`zero_gamma`, `attention_scaled`, ...) changes what is there; calibrations (`lsuv`, ...) run
    last, in the order of the steps, on what was drawn.

    Args:
        steps: Strategies' names or specs, the first one at the bottom.

    Example:
        >>> made = chain((InitSpec("orthogonal"), InitSpec("keep", overrides={"role:head": "constant"})))
        >>> made.calibrate_ is None
        True
    """
    made = [spec.build() for spec in steps]

    def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
        return _stacked([step.prepared(model, architecture) for step in made])

    return _stacked(made)._replace(prepare=prepare if any(s.prepare for s in made) else None)


def _stacked(steps: list[Strategy]) -> Strategy:
    initializer = steps[0].initializer
    calibrations = [steps[0].calibrate_] if steps[0].calibrate_ else []
    for step in steps[1:]:
        if step.on_calibration is not None and calibrations:
            calibrations = [step.on_calibration(_in_turn(calibrations))]
        elif step.on_top is not None:
            initializer = step.on_top(initializer)
        else:
            initializer = OnTop(step.initializer, initializer)
        if step.calibrate_ is not None:
            calibrations.append(step.calibrate_)
    notes = tuple(note for step in steps for note in step.notes)
    buffers = {name: value for step in steps for name, value in step.buffers.items()}
    calibrate_ = _in_turn(calibrations) if calibrations else None
    return Strategy(initializer, calibrate_, notes=notes, buffers=buffers)


def _in_turn(calibrations: list[Calibrator]) -> Calibrator:
    def calibrate_(model: nn.Module, plan: Any, forward: Any) -> list[Any]:
        return [line for each in calibrations for line in each(model, plan, forward) or ()]

    return calibrate_
