"""Making a plan: look at the model, decide for every tensor, write nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace

from torch import Tensor, nn

from lightning_init.architecture.analyze import analyze
from lightning_init.architecture.arguments import unknown
from lightning_init.architecture.judge import Verdict, judge
from lightning_init.architecture.names import canonical, named_weights, unwrap
from lightning_init.architecture.params import Architecture, ParamInfo
from lightning_init.architecture.provenance import note_empty
from lightning_init.architecture.sharded import any_sharded
from lightning_init.strategies.assigned import through_parametrizations
from lightning_init.strategies.distributions import Distribution, Keep
from lightning_init.strategies.initializers import HEAD, Initializer, Overridden, matches
from lightning_init.strategies.loaded import Loaded
from lightning_init.strategies.needs import FORWARD, NotYetError, UnsuitableError
from lightning_init.strategies.parts import decide
from lightning_init.strategies.plan import TRAINED, Forward, Plan, PlanEntry
from lightning_init.strategies.registry import Strategy, get
from lightning_init.strategies.spec import InitSpec

Scope = str | Sequence[str]
StrategyLike = str | InitSpec | Strategy | Initializer

_REFUSED = {
    "quantized": "is quantized: initialize before quantizing",
    "parametrized": "belongs to a computed weight that cannot be assigned to: initialize before "
    "parametrizing",
    "complex": "is complex: this scheme draws real numbers",
}


class NoShapeError(NotYetError):
    """A lazy tensor is to be drawn, and no forward pass has shown its shape."""


def resolve(strategy: StrategyLike) -> Strategy:
    """A strategy from its name, a spec, a Strategy or a bare initializer.

    Raises:
        ValueError: If a name is unknown.
        TypeError: If it is none of these.

    Example:
        >>> resolve("keep").calibrate_ is None
        True
    """
    if isinstance(strategy, str):
        return get(strategy).build({})
    if isinstance(strategy, InitSpec):
        return strategy.build()
    if isinstance(strategy, Strategy):
        return strategy
    if callable(strategy):
        return Strategy(strategy)
    raise TypeError(
        "strategy must be a name, an InitSpec, a Strategy or a function from ParamInfo to "
        f"Distribution, but got {strategy!r}"
    )


def make_plan(
    model: nn.Module,
    strategy: StrategyLike = "auto",
    *,
    forward: Forward | None = None,
    scope: Scope = "untrained",
) -> Plan:
    """Decide what every tensor of a model is drawn from; changes nothing.

    A parametrized weight is one entry, decided as if it were not parametrized; the parameters
    behind it are set with it. A model on the meta device can be planned: shapes suffice.

    Args:
        model: Any module, wrapped or not.
        strategy: A name, an `InitSpec`, a `Strategy`, or a function `ParamInfo -> Distribution`.
        forward: A call without arguments that runs the model once; without it, residual
            branches and functional activations are not seen, and lazy layers have no shapes.
            The model is left as it was: lazy layers stay lazy.
        scope: `"untrained"` leaves frozen, trained, loaded, adapter and quantized weights alone,
            and what may be trained; `"all"` writes everything; glob patterns on names write what
            they match, and nothing else.

    Returns:
        The plan; `str(plan)` is one screen.

    Raises:
        ValueError: If a pattern or an override matches nothing, or a tensor that would be drawn
            cannot be (lazy without `forward`, quantized, complex, behind a parametrization
            without `right_inverse`): nothing has been changed. Likewise if tensors that are
            sharded would be calibrated on data.
        UnsuitableError: If the scheme cannot serve the model (a ValueError): the text names the
            missing fact and the nearest scheme that applies. Likewise nothing has been changed.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> print(make_plan(model, "orthogonal").summary().split(";")[0])
        4 tensors, 58 parameters: 4 tensors drawn (58 parameters), 0 kept, 0 unrecognized
    """
    chosen = resolve(strategy)
    model = unwrap(model)
    _check_sharded(model)
    architecture = analyze(model, forward)
    chosen = chosen.prepared(model, architecture)
    patterns = check_scope(scope)
    _check_patterns("scope", patterns or [], architecture)
    for keys in _override_keys(chosen.initializer):
        _check_patterns("override", keys, architecture)
    note_empty(model)
    verdicts = judge(model, architecture.params) if scope == "untrained" else {}
    entries = tuple(
        _decide(info, chosen.initializer, patterns, verdicts.get(info.names))
        for info in architecture
    )
    _refuse(model, entries, architecture.traced)
    entries = through_parametrizations(model, entries)
    calibrate, notes = chosen.calibrate_, chosen.notes
    if calibrate is not None and not any(entry.written for entry in entries):
        calibrate, notes = None, (*notes, "nothing is drawn, so nothing is calibrated")
    if calibrate is not None:
        _refuse_to_calibrate(entries)
    buffers = tuple(canonical(name) for name, buffer in model.named_buffers() if buffer.is_meta)
    return Plan(
        entries,
        calibrate,
        architecture.traced,
        buffers,
        notes,
        buffers=_with_their_layers(chosen.buffers, entries),
    )


def _with_their_layers(
    buffers: Mapping[str, Tensor], entries: tuple[PlanEntry, ...]
) -> dict[str, Loaded]:
    """The buffers of layers whose parameters are loaded, or that have none."""
    kept, whys = set(), {}
    for entry in entries:
        loaded = isinstance(entry.distribution, Loaded)
        for name in entry.info.names:
            owner = name.rpartition(".")[0]
            kept |= set() if loaded else {owner}
            whys[owner] = entry.distribution.reason.rpartition(": ")[0] if loaded else ""
    found = {}
    for name, value in buffers.items():
        owner, _, last = name.rpartition(".")
        if owner not in kept:
            found[name] = Loaded(value, reason=f"{whys.get(owner) or 'loaded'}: {last}")
    return found


def _decide(
    info: ParamInfo,
    initializer: Initializer,
    patterns: list[str] | None,
    verdict: Verdict | None,
) -> PlanEntry:
    if "companion" in info.flags:
        return PlanEntry(info, Keep(info.evidence))
    if patterns is not None and not any(matches(pattern, info) for pattern in patterns):
        return PlanEntry(info, Keep(f"outside scope {', '.join(patterns)}"))
    if verdict is not None:  # under scope="untrained"
        info = replace(info, provenance=verdict.provenance)
        for flag in ("quantized", "frozen", "adapter"):
            if flag in info.flags:
                return PlanEntry(info, Keep(flag))
        if verdict.provenance == "pretrained":
            return PlanEntry(info, Keep(f"{TRAINED}: {verdict.why}"))
    distribution = decide(initializer, info)
    if not isinstance(distribution, Distribution):
        raise TypeError(
            f"the initializer must return a Distribution, but for {info.name} gave {distribution!r}"
        )
    return PlanEntry(info, distribution)


def _refuse(model: nn.Module, entries: tuple[PlanEntry, ...], traced: bool) -> None:
    computed = named_weights(model)
    for flag, why in _REFUSED.items():
        hit = [
            e.info.name
            for e in entries
            if e.written
            and flag in e.info.flags
            and not (flag == "parametrized" and e.info.names in computed)
        ]
        if hit:
            raise ValueError(_refusal(hit, why))
    hit = [
        e.info.name for e in entries if e.written and "lazy" in e.info.flags and not e.info.shape
    ]
    if hit:
        why = "not reached by `forward`" if traced else "pass forward=lambda: model(batch)"
        raise NoShapeError(_refusal(hit, f"is lazy and has no shape yet: {why}"))


def _check_sharded(model: nn.Module) -> None:
    computed = named_weights(model)
    if computed and any_sharded(model.parameters()):
        raise ValueError(
            f"cannot initialize: {_several([names[0] for names in computed])} computed by a "
            "parametrization in a sharded model, whose parts tell no process the whole: initialize "
            "before sharding, or shard without parametrizations. Nothing has been changed"
        )


def _refuse_to_calibrate(entries: tuple[PlanEntry, ...]) -> None:
    # A calibration writes into gathered copies, which are thrown away.
    if hit := [e.info.name for e in entries if e.written and "sharded" in e.info.flags]:
        error = UnsuitableError(
            f"cannot calibrate {_several(hit)} on data: sharded over several processes. Draw with "
            "a scheme that needs no data (auto, orthogonal, ...), or calibrate in one process with "
            'InitCallback(..., save_init="init.safetensors") and start from that file. Nothing has '
            "been changed"
        )
        raise error


def _several(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _refusal(names: list[str], why: str) -> str:
    return (
        f"cannot initialize: {_several(names)} {why}; or leave such tensors alone by a "
        "`scope` that names the others. Nothing has been changed"
    )


def check_scope(scope: Scope) -> list[str] | None:
    """The patterns of a scope, None for a scope by name.

    Raises:
        ValueError: If it is neither.
    """
    if scope in ("untrained", "all"):
        return None
    listed = isinstance(scope, (list, tuple, set, frozenset))
    patterns = [scope] if isinstance(scope, str) else list(scope) if listed else []
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(
            f'scope must be "untrained", "all" or patterns on parameter names, but got {scope!r}'
        )
    return patterns


def _check_patterns(kind: str, keys: Sequence[str], architecture: Architecture) -> None:
    for key in keys:
        if any(matches(key, info) for info in architecture):
            continue
        if key == HEAD and not architecture.traced:
            raise NotYetError(f"{kind} {key!r} needs a forward pass: {FORWARD}")
        if key.startswith("role:"):
            legal = [f"role:{role}" for role in dict.fromkeys(info.role for info in architecture)]
        else:
            legal = [name for info in architecture for name in info.names]
        raise ValueError(f"{kind} {key!r} matches no parameter: {unknown('name', key, legal)}")


def _override_keys(initializer: object) -> Iterator[list[str]]:
    """The keys of all exceptions inside of nested initializers."""
    if isinstance(initializer, Overridden):
        yield list(initializer.exceptions)
    if is_dataclass(initializer) and not isinstance(initializer, type):
        for part in fields(initializer):
            yield from _override_keys(getattr(initializer, part.name))
