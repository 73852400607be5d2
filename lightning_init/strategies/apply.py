"""From a plan to weights: the only place that writes initial values.

Everything that can be wrong is checked first, so an error leaves the model as it was. Tensors are
written in place: optimizers, data-parallel wrappers and ties keep their references.
"""

from __future__ import annotations

import hashlib
import warnings

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_init.architecture.adapters import is_original
from lightning_init.architecture.names import named_tensors, unwrap
from lightning_init.architecture.preserve import preserved
from lightning_init.architecture.provenance import checksum, record_of
from lightning_init.architecture.state import keep_tensor
from lightning_init.strategies.distributions import Calibrated, Distribution
from lightning_init.strategies.matrices import Orthogonal
from lightning_init.strategies.plan import Forward, Plan, PlanEntry, settled
from lightning_init.strategies.planning import Scope, StrategyLike, make_plan
from lightning_init.strategies.seeds import generator_for, resolve_seed


def apply_(model: nn.Module, plan: Plan, seed: int) -> None:
    """Draw every planned tensor of a model, in place, each from its own generator.

    Values are drawn on the CPU in float32, then cast and copied; a padding row stays zero. The
    global random state is untouched.

    Args:
        model: The model that the plan was made for.
        plan: From `make_plan`.
        seed: 0 to 2^63 - 1.

    Raises:
        ValueError: If the plan does not fit the model; nothing has been changed then.

    Warns:
        UserWarning: If the plan still has to be calibrated.

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


def calibrate_(model: nn.Module, plan: Plan, forward: Forward | None) -> None:
    """Run the calibration that a plan still has to come, if any.

    Args:
        model: The model, drawn by `apply_`.
        plan: Its plan.
        forward: A call without arguments that runs the model once on a batch.

    Raises:
        ValueError: If the plan needs a batch and `forward` is None.
    """
    if plan.calibrate_ is None:
        return
    if forward is None:
        raise ValueError(
            "this strategy calibrates on data: pass forward=lambda: model(batch) with one batch"
        )
    tensors = dict(named_tensors(model))
    with preserved(model, [tensors[e.info.names] for e in plan if e.written]):
        plan.calibrate_(unwrap(model), plan, forward)
    _remember(model, plan)


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
        forward: A call without arguments that runs the model once.
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
    _warn_of_copies(model, plan)
    if plan.calibrate_ is None:
        _draw(model, plan, seed)
        return plan
    if forward is None:
        calibrate_(model, plan, None)  # raises before anything is drawn
    tensors = dict(named_tensors(model))
    undo = [keep_tensor(tensors[entry.info.names]) for entry in plan if entry.written]
    _draw(model, plan, seed)
    before = {names: tensor._version for names, tensor in named_tensors(model)}
    try:
        calibrate_(model, plan, forward)
    except BaseException:
        with torch.no_grad():
            for restore in undo:
                if restore is not None:
                    restore()
        raise
    changed: dict[tuple[str, ...], Distribution] = {}
    for names, tensor in named_tensors(model):
        if tensor._version != before[names]:
            values, reason = tensor.detach().float(), plan[names[0]].reason
            mean = float(values.mean())
            std = float(values.std(correction=0)) if values.numel() else 0.0
            changed[names] = Calibrated(std, mean, reason=f"{reason}; scaled on one batch")
    return settled(plan, changed)


def _warn_of_copies(model: nn.Module, plan: Plan) -> None:
    """A frozen copy (a teacher, a target network) no longer equals what is drawn anew."""
    tensors = {
        names: t
        for names, t in named_tensors(model)
        if not is_lazy(t) and not t.is_meta and t.ndim > 1
    }
    drawn = {
        (checksum(tensors[entry.info.names]), entry.info.shape): entry.info.name
        for entry in plan
        if entry.written and entry.info.names in tensors
    }
    for entry in plan:
        tensor = tensors.get(entry.info.names)
        if tensor is None or entry.written or not bool((tensor != 0).any()):
            continue
        if is_original(entry.info.name):  # peft means the two to differ
            continue
        if (original := drawn.get((checksum(tensor), entry.info.shape))) is not None:
            warnings.warn(
                f"{entry.info.name} is kept ({entry.distribution.reason}), but was a copy of "
                f"{original}, which is drawn anew: copy it again after the initialization, or "
                'pass scope="all"',
                stacklevel=3,
            )
            return


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all parameters' names, shapes and bytes, as 64 hexadecimal digits.

    Example:
        >>> len(fingerprint(nn.Linear(2, 2)))
        64
    """
    digest = hashlib.sha256()
    for names, tensor in sorted(named_tensors(model)):
        if is_lazy(tensor):
            continue
        digest.update(f"{names}{tuple(tensor.shape)}{tensor.dtype}".encode())
        raw = tensor.detach().cpu().contiguous().flatten()
        digest.update(raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
    return digest.hexdigest()


def _draw(model: nn.Module, plan: Plan, seed: int) -> None:
    tensors = dict(named_tensors(model))
    work: list[tuple[PlanEntry, Tensor]] = []
    for entry in plan:
        if not entry.written:
            continue
        tensor = tensors.get(entry.info.names)
        if tensor is None or tuple(tensor.shape) != entry.info.shape or tensor.is_meta:
            got = "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
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
    with torch.no_grad():
        for entry, target in work:
            generator = generator_for(seed, entry.info.names)
            target.copy_(entry.distribution.sample(entry.info.shape, generator))
            if entry.info.padding_idx is not None:
                target[entry.info.padding_idx].zero_()
    _remember(model, plan)


def _remember(model: nn.Module, plan: Plan) -> None:
    record = record_of(unwrap(model))
    written = {entry.info.names for entry in plan if entry.written}
    record.written.update(
        {names[0]: checksum(tensor) for names, tensor in named_tensors(model) if names in written}
    )
