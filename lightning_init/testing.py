"""What every scheme owes its users, as checks that the author of one can call in a test.

    def test_my_scheme():
        check_strategy("my_scheme", [small_cnn, small_transformer])

Each function returns None or raises an `AssertionError` that says which promise is broken.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from lightning_init.architecture.names import named_tensors
from lightning_init.promises import (
    another,
    check_rng,
    holds,
    illegal,
    is_as,
    other_rng,
    rng_of,
    state_of,
    structure_of,
    values_of,
)
from lightning_init.strategies.apply import initialize_
from lightning_init.strategies.distributions import Calibrated, Constant, Distribution, Keep
from lightning_init.strategies.given import Given
from lightning_init.strategies.needs import NotYetError, UnsuitableError
from lightning_init.strategies.parts import Stacked
from lightning_init.strategies.plan import Forward, Plan, PlanEntry
from lightning_init.strategies.planning import make_plan
from lightning_init.strategies.registry import get
from lightning_init.strategies.spec import InitSpec

Build = Callable[[], tuple[nn.Module, Forward]]


def check_strategy(
    name: str, builds: Iterable[Build], params: Mapping[str, Any] | None = None
) -> None:
    """All checks of a registered scheme on several models.

    Args:
        name: Its registered name.
        builds: Calls that make a model and a call that runs it once, equal each time.
        params: Parameters without which it cannot work, a file's path for instance.

    Raises:
        AssertionError: If a promise is broken; the text says which.

    Example:
        >>> def build():
        ...     torch.manual_seed(0)
        ...     model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        ...     return model, lambda: model(torch.ones(2, 8))
        >>> check_strategy("kaiming_normal", [build])
    """
    check_spec(name, params)
    for build in builds:
        if check_plan(name, build, params) is not None:
            check_scale(name, build, params)
            check_weights(name, build, params)


def check_plan(name: str, build: Build, params: Mapping[str, Any] | None = None) -> Plan | None:
    """A plan is total, says why, is the same again, prints, pickles, and changes nothing.

    A model that the scheme cannot serve gets an error that names a scheme which can.

    Returns:
        The plan, None if the scheme cannot serve the model.

    Raises:
        AssertionError: If a promise is broken.
    """
    model, forward = build()
    spec = InitSpec(name, dict(params or {}))
    before, made, rng = state_of(model), structure_of(model), rng_of()
    try:
        plan = _plan(model, spec, forward)
    except (UnsuitableError, NotYetError) as error:
        holds(is_as(model, before), f"{name}: an error changed the model")
        _check_refusal(name, error, model, forward)
        return None
    holds(is_as(model, before), f"{name}: a plan changed the model")
    holds(structure_of(model) == made, f"{name}: a plan changed modules, hooks or training flags")
    check_rng(name, rng, "planning")
    found, wanted = [e.info.names for e in plan], [names for names, _ in named_tensors(model)]
    holds(found == wanted, f"{name}: the plan has {found}, the model {wanted}")
    for entry in plan:
        where = f"{name}: {entry.info.name}"
        holds(bool(entry.distribution.reason), f"{where} has no reason")
        if entry.written:
            flags = {"frozen", "lazy", "meta"} & entry.info.flags
            holds(not flags, f"{where} is {flags} and drawn")
            holds(entry.distribution.std >= 0, f"{where}: std {entry.distribution.std}")
    _check_blind(model, spec)
    again = _plan(model, spec, forward)
    same = [e.distribution for e in plan] == [e.distribution for e in again]
    holds(same, f"{name}: planned twice, the plans differ")
    holds(plan.summary() in str(plan), f"{name}: the plan does not print its summary")
    late = plan.calibrate_ is None or get(name).needs_batch or name == "chain"
    holds(late, f"{name}: calibrates, but needs= does not say 'batch'")
    sent = pickle.loads(pickle.dumps(plan))
    travelled = [(e.info.names, e.distribution) for e in sent]
    there = [(e.info.names, e.distribution) for e in plan]
    holds(travelled == there, f"{name}: pickled, it is another plan")
    yaml.safe_dump(plan.to_dict())
    return plan


def check_weights(name: str, build: Build, params: Mapping[str, Any] | None = None) -> None:
    """What is drawn is what the plan says, and the same for an equal model and seed.

    Raises:
        AssertionError: If a promise is broken.
    """
    spec = InitSpec(name, dict(params or {}))
    model, forward = build()
    before, buffers = values_of(model), {n: b.clone() for n, b in model.named_buffers()}
    grads, made, rng = [p.grad for p in model.parameters()], structure_of(model), rng_of()
    told = state_of(model)
    try:
        plan = _said(name, "drawing", lambda: initialize_(model, spec, seed=1, forward=forward))
    except UnsuitableError as error:  # what only running it shows
        holds(is_as(model, told), f"{name}: an error changed the model")
        _check_refusal(name, error, model, forward)
        return
    after = values_of(model)
    check_rng(name, rng, "drawing or calibrating")
    holds(
        structure_of(model) == made, f"{name}: modules, hooks or training flags are not as before"
    )
    same = all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    holds(same, f"{name}: leaves gradients behind: use torch.autograd.grad instead of backward()")
    holds(plan.calibrate_ is None, f"{name}: still to be calibrated")
    for entry in plan:
        if "companion" not in entry.info.flags:
            at = entry.info.name
            _check_drawn(f"{name}: {at}", entry, before[at], after[at])
    for at, buffer in model.named_buffers():
        # The vectors of a spectral norm belong to its weight.
        kept = "parametrizations" in at or torch.equal(buffer, buffers[at])
        holds(kept, f"{name}: changed the buffer {at}")
    twin, twin_forward = build()
    with other_rng():  # one that many builds seed to the same state would hide who reads it
        initialize_(twin, spec, seed=1, forward=twin_forward)
    for at, value in values_of(twin).items():
        holds(
            torch.equal(value, after[at]),
            f"{name}: {at} differs for the same seed: whatever is random must come from the "
            "generator that `sample` gets, not from a global one",
        )


def check_scale(name: str, build: Build, params: Mapping[str, Any] | None = None) -> None:
    """`scale=2` doubles every std and moves no mean; a calibration has it as its target.

    Raises:
        AssertionError: If a promise is broken.
    """
    limits = get(name).parameters["scale"].range
    if limits is not None and limits.low == limits.high:
        return
    model, forward = build()
    one = make_plan(model, InitSpec(name, dict(params or {})), forward=forward)
    two = make_plan(model, InitSpec(name, {**(params or {}), "scale": 2.0}), forward=forward)
    target = one.calibrate_ is not None and "scale" in _own_parameters(name)
    factor = 1.0 if target else 2.0
    for a, b in zip(one, two, strict=True):
        if a.written:
            _check_scaled(f"{name}: {a.info.name}", a.distribution, b.distribution, factor)


def check_spec(name: str, params: Mapping[str, Any] | None = None) -> None:
    """A spec goes through YAML and pickle unchanged; values out of range are refused.

    Raises:
        AssertionError: If a promise is broken.
    """
    entry = get(name)
    holds(bool(entry.summary), f"{name}: the docstring has no first sentence")
    values = {key: another(p) for key, p in entry.parameters.items() if p.converted is None}
    spec = InitSpec(entry.name, {**values, **(params or {})}, seed=7)
    for chosen in ({}, *({key: value} for key, value in values.items())):
        try:
            entry.build({**(params or {}), **chosen})
        except Exception as error:
            raise AssertionError(f"{name}: with legal {chosen}: {error!r}") from error
    text = yaml.safe_dump(spec.to_dict(), sort_keys=False)
    holds(InitSpec.from_dict(yaml.safe_load(text)) == spec, f"{name}: another spec after YAML")
    holds(pickle.loads(pickle.dumps(spec)) == spec, f"{name}: another spec after pickle")
    for key, parameter in entry.parameters.items():
        for value in illegal(parameter):
            try:
                InitSpec(name, {key: value})
            except ValueError as error:
                holds(key in str(error), f"{name}: the error for {key}={value!r} does not name it")
            else:
                raise AssertionError(f"{name}: {key}={value!r} is not refused")


def _plan(model: nn.Module, spec: InitSpec, forward: Forward | None) -> Plan:
    return _said(spec.strategy, "planning", lambda: make_plan(model, spec, forward=forward))


def _said(name: str, doing: str, work: Callable[[], Plan]) -> Plan:
    """The result of a call, whose error is a broken promise unless it is a refusal."""
    try:
        return work()
    except (UnsuitableError, NotYetError):
        raise
    except Exception as error:
        raise AssertionError(
            f"{name}: {doing} raised {type(error).__name__}: {error}. A scheme is total: it has a "
            "distribution for every tensor of every model (`ByRole` and `keep` help), or names "
            "what it `needs`, or raises an UnsuitableError in `prepare`"
        ) from error


def _check_blind(model: nn.Module, spec: InitSpec) -> None:
    """Without a forward pass a scheme does what it can, or refuses; it does not stumble."""
    with suppress(UnsuitableError, NotYetError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _plan(model, spec, None)
        except AssertionError as error:
            raise AssertionError(
                f"{error}. This was without a forward pass: `info.usage` is None then; say "
                "needs=('forward',) if nothing can be done"
            ) from error


def _check_refusal(name: str, error: ValueError, model: nn.Module, forward: Forward) -> None:
    text = str(error)
    holds(name in text, f"{name}: the error does not name the scheme: {text}")
    holds("Nothing has been changed" in text, f"{name}: does it change anything? {text}")
    if isinstance(error, UnsuitableError):
        nearest = error.nearest
        holds(nearest in text, f"{name}: the error names no nearest scheme: {text}")
        make_plan(model, nearest, forward=forward)


def _check_drawn(where: str, entry: PlanEntry, before: Tensor, after: Tensor) -> None:
    law = entry.distribution
    holds(bool(after.isfinite().all()), f"{where} is not finite")
    if isinstance(law, Keep):
        holds(torch.equal(after, before), f"{where} is kept, but was changed")
        return
    rows = torch.ones(len(after) if after.ndim else 1, dtype=torch.bool)
    if entry.info.padding_idx is not None:
        rows[entry.info.padding_idx] = False
        holds(bool((after[~rows] == 0).all()), f"{where}: the padding row is not 0")
    drawn = after.float()[rows] if after.ndim else after.float()
    if isinstance(law, Constant):
        holds(bool((drawn == torch.tensor(law.value)).all()), f"{where} is not {law}")
        return
    # 6 standard errors of a small tensor's std; a table's padding row is 0
    slack = 6 / (2 * after.numel()) ** 0.5 + (0.03 if entry.info.padding_idx is not None else 0)
    if isinstance(law, Calibrated):
        slack += 1e-3
    rms = float((after.float() - law.mean).square().mean().sqrt())
    off = abs(rms - law.std)
    holds(
        off <= slack * law.std + 1e-12,
        f"{where}: planned as {law}, std {law.std:.4g}, but what was drawn has {rms:.4g}",
    )


def _check_scaled(where: str, one: Distribution, two: Distribution, factor: float) -> None:
    if isinstance(one, Stacked) and isinstance(two, Stacked):
        for (part, each), (_, other) in zip(one.parts, two.parts, strict=True):
            _check_scaled(f"{where} ({part.name})", each, other, factor)
        return
    ratio = 1.0 if isinstance(one, Given) else factor
    close = abs(two.std - ratio * one.std) <= 1e-6 * abs(two.std)
    holds(close, f"{where}: scale=2 makes {one} {two}: its std must double (see `scaled`)")
    # An identity matrix has a mean, which is part of its size.
    moved = min(abs(two.mean - one.mean), abs(two.mean - ratio * one.mean))
    holds(moved <= 1e-6 * max(1.0, abs(one.mean)), f"{where}: a mean moves")


def _own_parameters(name: str) -> set[str]:
    import inspect

    return set(inspect.signature(get(name).function).parameters)
