"""The plan: one decision per tensor, made and readable before any weight changes.

`make_plan` is pure: it looks at the model and writes nothing. Every parameter gets exactly one
distribution; leaving a tensor alone is a decision too, `Keep`, with its reason.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lightning_init.architecture.analyze import analyze
from lightning_init.architecture.arguments import unknown
from lightning_init.architecture.names import unwrap
from lightning_init.architecture.params import Architecture, ParamInfo, Role
from lightning_init.architecture.provenance import examine
from lightning_init.strategies.distributions import Calibrated, Distribution, Keep
from lightning_init.strategies.initializers import Initializer, Overridden, Scaled, matches
from lightning_init.strategies.registry import Calibrator, Strategy, get
from lightning_init.strategies.spec import InitSpec

Forward = Callable[[], object]
Scope = str | Sequence[str]
StrategyLike = str | InitSpec | Strategy | Initializer

_REFUSED = {
    "lazy": "has no shape yet: run the model once on a batch first",
    "meta": "is on the meta device: materialize the model first (`model.to_empty(device=...)`)",
    "sharded": "is sharded: initialize before the model is wrapped",
    "quantized": "is quantized: initialize before quantizing",
    "parametrized": "is computed from other tensors (weight_norm, spectral_norm, pruning): "
    "initialize before parametrizing",
    "complex": "is complex: this scheme draws real numbers",
}


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """One tensor and what it will be drawn from."""

    info: ParamInfo
    distribution: Distribution

    @property
    def written(self) -> bool:
        """Whether the tensor is drawn, not kept."""
        return not isinstance(self.distribution, Keep)


@dataclass(frozen=True)
class Plan:
    """Every tensor's distribution; prints as one screen.

    Attributes:
        entries: One per tensor, in registration order.
        calibrate_: The calibration that is still to come, None if none is.
        traced: Whether a forward pass was observed.

    Example:
        >>> plan = make_plan(nn.Linear(4, 2), "kaiming_normal")
        >>> round(plan["weight"].std, 4), plan["bias"].mean
        (0.7071, 0.0)
    """

    entries: tuple[PlanEntry, ...]
    calibrate_: Calibrator | None = None
    traced: bool = False

    def __getitem__(self, name: str) -> Distribution:
        """The distribution of a tensor, by any of its names."""
        for entry in self.entries:
            if name in entry.info.names:
                return entry.distribution
        names = [name for entry in self.entries for name in entry.info.names]
        raise KeyError(unknown("parameter", name, names))

    def __iter__(self) -> Iterator[PlanEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> dict[str, Any]:
        # A calibration holds functions of the strategy; what is sent elsewhere is the decision.
        return {**self.__dict__, "calibrate_": None}

    def where(self, condition: Callable[[ParamInfo], bool]) -> Plan:
        """The plan for the tensors that fulfil a condition; the others are not in it."""
        return replace(self, entries=tuple(e for e in self.entries if condition(e.info)))

    def groups(self) -> list[tuple[str, tuple[PlanEntry, ...]]]:
        """Entries that differ only in the numbers of their names, labelled `12 x h.*.weight`."""
        found: dict[tuple[object, ...], list[PlanEntry]] = {}
        for entry in self.entries:
            pattern = re.sub(r"\d+", "*", entry.info.name)
            reason = re.sub(r"branch \d+ of", "branch * of", entry.distribution.reason)
            # Calibrated tensors are alike although data gave each a std of its own.
            calibrated = isinstance(entry.distribution, Calibrated)
            drawn = "calibrated" if calibrated else str(entry.distribution)
            key = (pattern, entry.info.shape, drawn, reason)
            found.setdefault(key, []).append(entry)
        return [
            (f"{len(es)} x {key[0]}" if len(es) > 1 else es[0].info.name, tuple(es))
            for key, es in found.items()
        ]

    def summary(self) -> str:
        """How many tensors and parameters there are, and how many are drawn, kept, unknown."""
        total = sum(entry.info.numel for entry in self.entries)
        drawn = [entry for entry in self.entries if entry.written]
        share = sum(entry.info.numel for entry in drawn)
        strange = sum(entry.info.role is Role.OTHER for entry in self.entries)
        seen = "" if self.traced else "; no forward pass seen, so residual branches are unknown"
        return (
            f"{len(self.entries)} tensors, {total:,} parameters: {len(drawn)} tensors drawn "
            f"({share:,} parameters), {len(self.entries) - len(drawn)} kept, "
            f"{strange} unrecognized{seen}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "summary": self.summary(),
            "calibration_to_come": self.calibrate_ is not None,
            "entries": [
                {
                    "name": entry.info.name,
                    "names": list(entry.info.names),
                    "shape": list(entry.info.shape),
                    "role": str(entry.info.role),
                    "provenance": entry.info.provenance,
                    "flags": sorted(entry.info.flags),
                    "draw": str(entry.distribution),
                    "std": _number(entry.distribution.std),
                    "mean": _number(entry.distribution.mean),
                    "reason": entry.distribution.reason,
                }
                for entry in self.entries
            ],
        }

    def diff(self, other: Plan) -> str:
        """The tensors on which two plans of one model disagree, a line each."""
        lines = []
        theirs = {entry.info.names: entry.distribution for entry in other.entries}
        for label, entries in self.groups():
            different = [e for e in entries if theirs.get(e.info.names) != e.distribution]
            if different:
                first = different[0]
                there = theirs.get(first.info.names, "absent")
                lines.append(f"{label}: {first.distribution} -> {there}")
        return "\n".join(lines) or "no difference"

    def __str__(self) -> str:
        lines = [self.summary()]
        for label, entries in self.groups():
            first = entries[0]
            shape = "x".join(map(str, first.info.shape)) or "scalar"
            lines.append(f"  {label} ({shape}): {first.distribution} [{first.distribution.reason}]")
        if self.calibrate_ is not None:
            lines.append("  then calibrated on one batch")
        return "\n".join(lines)


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

    Args:
        model: Any module, wrapped or not.
        strategy: A name, an `InitSpec`, a `Strategy`, or a function `ParamInfo -> Distribution`.
        forward: A call without arguments that runs the model once; without it, residual
            branches and functional activations are not seen.
        scope: `"untrained"` leaves frozen, trained, loaded and adapter weights alone; `"all"`
            writes everything; glob patterns on names write what they match, and nothing else.

    Returns:
        The plan; `str(plan)` is one screen.

    Raises:
        ValueError: If a pattern or an override matches nothing, or a tensor that would be drawn
            cannot be (lazy, meta, sharded, quantized, parametrized): nothing has been changed.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> print(make_plan(model, "orthogonal").summary().split(";")[0])
        4 tensors, 58 parameters: 4 tensors drawn (58 parameters), 0 kept, 0 unrecognized
    """
    chosen = resolve(strategy)
    model = unwrap(model)
    architecture = analyze(model, forward)
    patterns = _patterns(scope)
    _check_patterns("scope", patterns or [], architecture)
    for keys in _override_keys(chosen.initializer):
        _check_patterns("override", keys, architecture)
    infos = architecture.params
    if scope == "untrained":
        infos = examine(model, infos)
    entries = tuple(
        PlanEntry(info, _decide(info, chosen.initializer, scope, patterns)) for info in infos
    )
    _refuse(entries)
    calibrate = chosen.calibrate_ if any(entry.written for entry in entries) else None
    return Plan(entries, calibrate, architecture.traced)


def _decide(
    info: ParamInfo, initializer: Initializer, scope: Scope, patterns: list[str] | None
) -> Distribution:
    if patterns is not None:
        if not any(matches(pattern, info) for pattern in patterns):
            return Keep(f"outside scope {', '.join(patterns)}")
    elif scope == "untrained":
        for flag in ("frozen", "adapter"):
            if flag in info.flags:
                return Keep(f'{flag}: pass scope="all" or its name to write it')
        if info.provenance == "pretrained":
            return Keep('trained or loaded: pass scope="all" or its name to write it')
    distribution = initializer(info)
    if not isinstance(distribution, Distribution):
        raise TypeError(
            f"the initializer must return a Distribution, but for {info.name} gave {distribution!r}"
        )
    return distribution


def _refuse(entries: tuple[PlanEntry, ...]) -> None:
    for flag, why in _REFUSED.items():
        hit = [e.info.name for e in entries if e.written and flag in e.info.flags]
        if hit:
            more = f" and {len(hit) - 1} more" if len(hit) > 1 else ""
            raise ValueError(
                f"cannot initialize: {hit[0]}{more} {why}; or leave such tensors alone by a "
                "`scope` that names the others. Nothing has been changed"
            )


def _patterns(scope: Scope) -> list[str] | None:
    if scope in ("untrained", "all"):
        return None
    patterns = [scope] if isinstance(scope, str) else list(scope)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(
            f'scope must be "untrained", "all" or patterns on parameter names, but got {scope!r}'
        )
    return patterns


def _check_patterns(kind: str, keys: Sequence[str], architecture: Architecture) -> None:
    for key in keys:
        if any(matches(key, info) for info in architecture):
            continue
        if key.startswith("role:"):
            legal = [f"role:{role}" for role in dict.fromkeys(info.role for info in architecture)]
        else:
            legal = [name for info in architecture for name in info.names]
        raise ValueError(f"{kind} {key!r} matches no parameter: {unknown('name', key, legal)}")


def _override_keys(initializer: Initializer) -> Iterator[list[str]]:
    if isinstance(initializer, Scaled):
        yield from _override_keys(initializer.initializer)
    elif isinstance(initializer, Overridden):
        yield list(initializer.exceptions)
        yield from _override_keys(initializer.default)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def settled(plan: Plan, entries: dict[tuple[str, ...], Distribution]) -> Plan:
    """The plan after its calibration: with the given distributions, nothing more to come."""
    return dataclasses.replace(
        plan,
        calibrate_=None,
        entries=tuple(
            PlanEntry(e.info, entries.get(e.info.names, e.distribution)) for e in plan.entries
        ),
    )
