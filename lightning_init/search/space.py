"""What is searched: strategies with their declared ranges, and any key of the configuration.

The space is flat: every axis is always suggested, and what a strategy does not take is ignored.
Samplers then see one fixed set of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_init.architecture.arguments import Parameter
from lightning_init.search.axis import Axis as Axis, around as around, parse_axis as parse_axis
from lightning_init.strategies.registry import SCALE, Entry, entries, get
from lightning_init.strategies.spec import InitSpec

STRATEGY = "strategy"
ALWAYS = ("keep", "auto")  # what everything is compared with


@dataclass(frozen=True)
class Space:
    """Strategies, their parameters, and keys of the configuration.

    Args:
        strategies: Names, or specs, which are tried as they are; `keep` (as built) and `auto` are
            always among them.
        config: Dotted configuration key -> axis.
        fixed: The specs among the strategies, by label.

    Raises:
        ValueError: If a name is unknown.

    Example:
        >>> space = Space(("kaiming_normal", "orthogonal"))
        >>> sorted(space.axes)
        ['gain', 'mode', 'scale', 'strategy']
        >>> space.spec({"strategy": "orthogonal", "gain": 1.5, "mode": "fan_out"}).params
        {'gain': 1.5}
    """

    strategies: tuple[str | InitSpec, ...] = ()
    config: Mapping[str, Axis] = field(default_factory=dict)
    fixed: Mapping[str, InitSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.strategies, str):
            raise ValueError(
                f"strategies must be a tuple of names, but got {self.strategies!r}: write "
                f"({self.strategies!r},)"
            )
        for key, axis in self.config.items():
            if not isinstance(axis, Axis):
                raise ValueError(f"config[{key!r}] must be an Axis, but got {axis!r}")
        chosen = self.strategies or tuple(entry.name for entry in entries() if entry.search)
        fixed = {str(one): replace(one, seed=None) for one in chosen if isinstance(one, InitSpec)}
        fixed = {**self.fixed, **fixed}
        names = [str(one) if str(one) in fixed else get(str(one)).name for one in chosen]
        object.__setattr__(self, "strategies", tuple(dict.fromkeys([*ALWAYS, *names])))
        object.__setattr__(self, "fixed", fixed)

    @property
    def names(self) -> tuple[str, ...]:
        """The strategies by name, the specs by label."""
        return tuple(str(one) for one in self.strategies)

    def _searched(self, name: str) -> Sequence[Parameter]:
        return () if name in self.fixed else _searched(get(name))

    @property
    def axes(self) -> dict[str, Axis]:
        """Every axis by name; strategies that declare the same parameter share one."""
        found: dict[str, Axis] = {STRATEGY: Axis(choices=self.names, current="keep")}
        for name in self.names:
            for parameter in self._searched(name):
                found[self._axis_name(name, parameter)] = _axis(parameter)
        return {**found, **self.config}

    def _axis_name(self, strategy: str, parameter: Parameter) -> str:
        others = [p for n in self.names for p in self._searched(n) if p.name == parameter.name]
        shared = all(replace(p, default=None) == replace(parameter, default=None) for p in others)
        return parameter.name if shared else f"{strategy}.{parameter.name}"

    def spec(self, values: Mapping[str, Any]) -> InitSpec:
        """The init that a point of the space means."""
        name = values[STRATEGY]
        if name in self.fixed:
            return self.fixed[name]
        params = {p.name: values[self._axis_name(name, p)] for p in self._searched(name)}
        defaults = get(name).parameters
        return InitSpec(name, {k: v for k, v in params.items() if v != defaults[k].default})

    def gated(self, values: Mapping[str, Any]) -> bool:
        """Whether an unhealthy start ends this trial: not what everything is compared with."""
        return self.spec(values) not in (InitSpec("keep"), InitSpec("auto"))

    def overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration keys that a point of the space sets."""
        return {key: values[key] for key in self.config}

    def recipes(self) -> list[dict[str, Any]]:
        """The first points: the as-built model, `auto`, then each strategy at its defaults."""
        start = {key: axis.start for key, axis in self.axes.items()}
        found = []
        for name in self.names:
            point = {**start, STRATEGY: name}
            for parameter in self._searched(name):
                point[self._axis_name(name, parameter)] = parameter.default
            found.append(point)
        return found


def _searched(entry: Entry) -> Sequence[Parameter]:
    """The parameters worth searching: the scheme's own, else `scale`."""
    if entry.name == "keep":
        return ()  # it draws nothing that could be scaled
    own = [p for p in entry.parameters.values() if p is not SCALE and _varies(p)]
    sized = any(p.range is not None for p in entry.parameters.values() if p is not SCALE)
    return own if sized else [*own, SCALE]


def _varies(parameter: Parameter) -> bool:
    if parameter.converted or (parameter.kind is str and not parameter.choices):
        return False  # a path, a list of steps: nothing to sample
    if not parameter.searched:
        return False
    return parameter.range is None or parameter.range.low < parameter.range.high


def _axis(parameter: Parameter) -> Axis:
    if parameter.choices:
        return Axis(choices=parameter.choices, current=parameter.default)
    if parameter.kind is bool:
        return Axis(choices=(False, True), current=parameter.default)
    limits = parameter.range
    if limits is None:
        return Axis(0.0, 1.0, current=parameter.default)
    low, high = limits.search or (limits.low, limits.high)
    whole = parameter.kind is int
    return Axis(low, high, log=limits.log, current=parameter.default, whole=whole)
