"""From a plan to weights: the only place that writes initial values.

Everything that can be wrong is checked first, so an error leaves the model as it was. Tensors are
written in place: optimizers, data-parallel wrappers and ties keep their references.
"""

from __future__ import annotations

import hashlib
import warnings
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.gathered import gathered
from lightning_init.architecture.lazy import has_lazy, keep_lazy, materialize_
from lightning_init.architecture.names import (
    canonical,
    named_states,
    named_tensors,
    named_weights,
    unwrap,
)
from lightning_init.architecture.plain import plain
from lightning_init.architecture.preserve import fix_rng, preserved
from lightning_init.architecture.provenance import checksums, record_of
from lightning_init.architecture.state import Undo, keep_tensor
from lightning_init.strategies.assigned import assign, is_close, unscalable
from lightning_init.strategies.calibration import Calibration
from lightning_init.strategies.distributions import Calibrated, Distribution, Keep
from lightning_init.strategies.left_alone import warn_of_copies, warn_of_garbage
from lightning_init.strategies.loaded import Loaded
from lightning_init.strategies.matrices import Orthogonal
from lightning_init.strategies.plan import Forward, Plan, PlanEntry, settled
from lightning_init.strategies.planning import Scope, StrategyLike, make_plan
from lightning_init.strategies.seeds import generator_for, resolve_seed
from lightning_init.strategies.write import in_float32, write_


def apply_(model: nn.Module, plan: Plan, seed: int) -> None:
    """Draw every planned tensor of a model, in place, each from its own generator.

    Values are drawn on the CPU in float32, then cast and copied; a padding row stays zero. The
    global random state is untouched. A weight that is computed from other tensors (weight_norm,
    spectral_norm, pruning, any parametrization with a `right_inverse`) is assigned through what
    computes it; spectral_norm's vectors are estimated anew.

    Args:
        model: The model that the plan was made for.
        plan: From `make_plan`; of a model on the meta device, call `model.to_empty(device=...)`
            between the two.
        seed: 0 to 2^63 - 1.

    Raises:
        ValueError: If the plan does not fit the model, or a tensor that it draws has no memory
            (lazy, meta); nothing has been changed then.

    Warns:
        UserWarning: If the plan still has to be calibrated, or leaves arbitrary memory in a tensor
            or buffer that was on the meta device.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> apply_(model, make_plan(model, "xavier_uniform"), seed=0)
        >>> bool((model.bias == 0).all())
        True
    """
    _draw(model, plan, seed)
    if plan.calibrate_ is not None:
        warnings.warn(
            "these weights are only drawn: the strategy calibrates on data, "
            "call calibrate_(model, plan, forward) next",
            stacklevel=2,
        )


def calibrate_(model: nn.Module, plan: Plan, forward: Forward | None) -> tuple[Calibration, ...]:
    """Run the calibration that a plan still has to come, if any.

    Args:
        model: The model, drawn by `apply_`.
        plan: Its plan.
        forward: A call without arguments that runs the model once on a batch.

    Returns:
        What was reached, with readings from before and after; empty if nothing was to come.

    Raises:
        ValueError: If the plan needs a batch and `forward` is None.
    """
    calibrate = plan.calibrate_
    if calibrate is None:
        return ()
    if forward is None:
        raise ValueError(
            "this strategy calibrates on data: pass forward=lambda: model(batch) with one batch"
        )
    model = unwrap(model)
    fixed = unscalable(model)
    bound = [e.info.name for e in plan if e.written and e.info.names in fixed]
    kept = Keep(reason="scaled by its parametrization")
    entries = [replace(e, distribution=kept) if e.info.name in bound else e for e in plan]
    plan = replace(plan, entries=tuple(entries))
    with plain(model) as computed:
        versions = [stand_in._version for _, stand_in in computed]
        tensors = {names[0]: tensor for names, tensor in named_tensors(model)}
        with preserved(model, [tensors[e.info.name] for e in plan if e.written]):
            fix_rng()
            done = tuple(calibrate(model, plan, forward) or ())
    for (weight, stand_in), before in zip(computed, versions, strict=True):
        value = stand_in.detach()
        same = stand_in._version == before or torch.equal(value, weight.value())
        if not same and not is_close(weight.assign(value), value):
            warnings.warn(
                f"{weight.kind} changes what the calibration wrote into the {weight.name} of a "
                f"{type(weight.module).__name__}: that layer is not calibrated",
                stacklevel=2,
            )
    _remember(model, plan)
    if not bound:
        return done
    said = f"not calibrated: {', '.join(bound)}, which a parametrization scales by itself"
    return tuple(replace(each, why="; ".join(filter(None, (each.why, said)))) for each in done)


def initialize_(
    model: nn.Module,
    strategy: StrategyLike = "auto",
    *,
    seed: int | None = None,
    forward: Forward | None = None,
    scope: Scope = "untrained",
) -> Plan:
    """Plan, draw and calibrate a model in place.

    Args:
        model: Any module.
        strategy: A name, an `InitSpec`, a `Strategy`, or a function `ParamInfo -> Distribution`.
        seed: 0 to 2^63 - 1; None takes the spec's, else the global seed, else a new one.
        forward: A call without arguments that runs the model once. It gives lazy layers their
            shapes, unless nothing is to be drawn.
        scope: What may be written, see `make_plan`.

    Returns:
        The plan that was carried out, calibrated tensors with their measured std.

    Raises:
        ValueError: See `make_plan`; nothing has been changed then.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> plan = initialize_(model, "xavier_normal", seed=0)
        >>> round(plan["0.weight"].std, 4)
        0.4082
    """
    from lightning_init.strategies.spec import InitSpec

    if seed is None and isinstance(strategy, InitSpec):
        seed = strategy.seed
    plan = make_plan(model, strategy, forward=forward, scope=scope)
    return carry_out(model, plan, resolve_seed(seed).value, forward)


def carry_out(model: nn.Module, plan: Plan, seed: int, forward: Forward | None) -> Plan:
    """Draw and calibrate a plan; the plan returned has nothing more to come."""
    warn_of_copies(model, plan)
    if plan.calibrate_ is not None and forward is None:
        calibrate_(model, plan, None)  # raises before anything is drawn
    with ExitStack() as on_error:
        if forward is not None and has_lazy(model) and any(entry.written for entry in plan):
            for restore in keep_lazy(model):
                on_error.callback(restore)
            materialize_(model, forward)
        if plan.calibrate_ is not None:
            for restore in _keep_written(model, plan):
                on_error.callback(restore)
        _draw(model, plan, seed)
        before = {names: tensor._version for names, tensor in named_tensors(model)}
        drawn = dict(record_of(unwrap(model)).written)
        done = calibrate_(model, plan, forward)
        on_error.pop_all()
    if plan.calibrate_ is None:
        return plan
    computed, now = named_weights(model), record_of(unwrap(model)).written
    # What was changed and then taken back is as it was drawn.
    written = {e.info.names for e in plan if e.written and now[e.info.name] != drawn[e.info.name]}
    changed: dict[tuple[str, ...], Distribution] = {}
    for names, tensor in named_tensors(model):
        if tensor._version != before[names] and names in written:
            value = computed[names][0].value() if names in computed else tensor.detach()
            values, reason = value.float(), plan[names[0]].reason
            mean = float(values.mean())
            std = float(values.std(correction=0)) if values.numel() else 0.0
            changed[names] = Calibrated(std, mean, reason=f"{reason}; scaled on one batch")
    return settled(plan, changed, done)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all parameters' names, shapes and bytes, as 64 hexadecimal digits.

    Example:
        >>> len(fingerprint(nn.Linear(2, 2)))
        64
    """
    digest = hashlib.sha256()
    for names, value in gathered(model):
        digest.update(f"{names}{tuple(value.shape)}{value.dtype}".encode())
        raw = value.cpu().contiguous().flatten()
        digest.update(raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
    return digest.hexdigest()


def _draw(model: nn.Module, plan: Plan, seed: int) -> None:
    tensors = dict(named_tensors(model))
    computed = named_weights(model)
    work: list[tuple[PlanEntry, Tensor]] = []
    for entry in plan:
        if not entry.written:
            continue
        names = entry.info.names
        tensor = tensors.get(names)
        if tensor is not None and is_lazy(tensor):
            raise ValueError(
                f"{entry.info.name} is lazy and has no memory yet: run the model once on a batch "
                "first, or let initialize_(model, ..., forward=lambda: model(batch)) do it"
            )
        if tensor is not None and tensor.is_meta:
            raise ValueError(
                f"{entry.info.name} is on the meta device and has no memory: call "
                "model.to_empty(device=...) first, then apply the plan"
            )
        if tensor is None or (names not in computed and tuple(tensor.shape) != entry.info.shape):
            got = "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
            if any(names[0] in found for found in tensors) and tensor is None:
                got = (
                    f"no tensor with the names {', '.join(names)} (to_empty unties: tie them again)"
                )
            raise ValueError(
                f"the plan does not fit this model: it has {entry.info.name} of shape "
                f"{entry.info.shape}, the model {got}; call make_plan(model, ...) again"
            )
        if isinstance(entry.distribution, Calibrated):
            raise ValueError(
                f"{entry.info.name} was calibrated on data and cannot be drawn again: "
                "call make_plan(model, ...) and calibrate_ anew"
            )
        if isinstance(entry.distribution, Orthogonal) and (
            entry.distribution.shape != entry.info.shape
        ):
            raise ValueError(
                f"{entry.info.name} has shape {entry.info.shape}, but its orthogonal "
                f"distribution is for {entry.distribution.shape}"
            )
        work.append((entry, tensor))
    with torch.no_grad(), in_float32(), ExitStack() as on_error:
        for entry, _ in work:  # these first, since they may fail
            for weight in (weights := computed.get(entry.info.names, [])):
                for restore in weight.keep():
                    on_error.callback(restore)
            if weights:
                assign(entry, weights, generator_for(seed, entry.key))
        on_error.pop_all()
        write_([item for item in work if item[0].info.names not in computed], seed)
        for name, buffer in _planned_buffers(model, plan):
            buffer.copy_(plan.buffers[name].values)
    warn_of_garbage(model, plan)
    _remember(model, plan)


def _keep_written(model: nn.Module, plan: Plan) -> list[Undo]:
    """How to put back every tensor that a plan writes."""
    tensors, computed = dict(named_tensors(model)), named_weights(model)
    undo: list[Undo | None] = []
    for names in (entry.info.names for entry in plan if entry.written):
        if names in computed:
            undo += [restore for weight in computed[names] for restore in weight.keep()]
        else:
            undo.append(keep_tensor(tensors[names]))
    undo += [keep_tensor(buffer) for _, buffer in _planned_buffers(model, plan)]
    return [torch.no_grad()(restore) for restore in undo if restore is not None]


def _planned_buffers(model: nn.Module, plan: Plan) -> list[tuple[str, Tensor]]:
    """The buffers that a plan writes, by their canonical names."""
    named = ((canonical(name), buffer) for name, buffer in unwrap(model).named_buffers())
    return [(name, buffer) for name, buffer in named if name in plan.buffers]


def _remember(model: nn.Module, plan: Plan) -> None:
    record = record_of(unwrap(model))
    # What is loaded counts as trained from now on.
    drawn = [e for e in plan if e.written and not isinstance(e.distribution, Loaded)]
    written = {entry.info.names for entry in drawn}
    record.written.update(
        {names[0]: checksums(tensor) for names, tensor in named_states(model) if names in written}
    )
