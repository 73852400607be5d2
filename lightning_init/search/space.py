"""What is searched: strategies with their declared ranges, and any key of the configuration.

The space is flat: every axis is always suggested, and what a strategy does not take is ignored.
Samplers then see one fixed set of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import optuna

from lightning_init.architecture.arguments import Parameter
from lightning_init.strategies.registry import SCALE, Entry, entries, get
from lightning_init.strategies.spec import InitSpec

STRATEGY = "strategy"


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension: an interval or a list of choices, and the value that the user has now.

    Args:
        low: Smallest value.
        high: Largest value.
        log: Whether the logarithm is sampled.
        choices: Instead of an interval.
        current: The value of the recipes, None for the middle of the interval.
        whole: Whether values are whole numbers.

    Raises:
        ValueError: If the interval is empty or a logarithmic one is not positive.

    Example:
        >>> Axis(0.001, 0.1, log=True).start
        0.01
    """

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Any, ...] = ()
    current: Any = None
    whole: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.choices, str) or not isinstance(self.choices, (tuple, list)):
            raise ValueError(f"choices must be a tuple of values, but got {self.choices!r}")
        finite = math.isfinite(self.high - self.low)
        if not self.choices and (
            not (self.low < self.high and finite) or (self.log and self.low <= 0)
        ):
            raise ValueError(
                f"finite `low < high` (and `low > 0` if log) must hold, but got low={self.low}, "
                f"high={self.high}, log={self.log}"
            )

    @property
    def start(self) -> Any:
        """The value that recipes use."""
        if self.current is not None:
            return self.current
        if self.choices:
            return self.choices[0]
        middle = (self.low * self.high) ** 0.5 if self.log else (self.low + self.high) / 2
        return round(middle) if self.whole else middle

    @property
    def distribution(self) -> optuna.distributions.BaseDistribution:
        """The same for Optuna."""
        if self.choices:
            return optuna.distributions.CategoricalDistribution(self.choices)
        if self.whole:
            low, high = int(self.low), int(self.high)
            return optuna.distributions.IntDistribution(low, high, log=self.log)
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Space:
    """Strategies, their parameters, and keys of the configuration.

    Args:
        strategies: Names, or specs, which are tried as they are; `keep` is always among them.
        config: Dotted configuration key -> axis.
        fixed: The specs among the strategies, by label.

    Raises:
        ValueError: If a name is unknown.

    Example:
        >>> space = Space(("kaiming_normal", "orthogonal"))
        >>> sorted(space.axes)
        ['gain', 'mode', 'strategy']
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
        object.__setattr__(self, "strategies", tuple(dict.fromkeys(["keep", *names])))
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

    def overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration keys that a point of the space sets."""
        return {key: values[key] for key in self.config}

    def recipes(self) -> list[dict[str, Any]]:
        """The first points: the as-built model, `auto`, then each strategy at its defaults."""
        first = sorted(self.names, key=lambda name: {"keep": 0, "auto": 1}.get(name, 2))
        start = {key: axis.start for key, axis in self.axes.items()}
        found = []
        for name in first:
            point = {**start, STRATEGY: name}
            for parameter in self._searched(name):
                point[self._axis_name(name, parameter)] = parameter.default
            found.append(point)
        return found


def parse_axis(text: str) -> tuple[str, Axis]:
    """An axis from `KEY=LOW:HIGH[:log]` or `KEY=a,b,c`.

    Raises:
        ValueError: If the text has neither form.

    Example:
        >>> parse_axis("model.init_args.width=32,64")[1].choices
        (32, 64)
    """
    key, equals, rest = text.partition("=")
    parts = rest.split(":")
    try:
        if not key or not equals or not all(rest.split(",")):
            raise ValueError
        if len(parts) == 1:
            return key, Axis(choices=tuple(_value(item) for item in rest.split(",")))
        low, high = _value(parts[0]), _value(parts[1])
        if len(parts) > 3 or (len(parts) == 3 and parts[2] != "log"):
            raise ValueError
        whole = isinstance(low, int) and isinstance(high, int)
        return key, Axis(float(low), float(high), log=len(parts) == 3, whole=whole)
    except (TypeError, ValueError) as error:
        detail = f" ({error})" if str(error) else ""
        raise ValueError(
            f"--axis must be KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=a,b,c, but got {text!r}{detail}"
        ) from None


def around(value: float) -> Axis:
    """A learning rate's axis: a tenth to ten times the user's own, logarithmic."""
    return Axis(value / 10, value * 10, log=True, current=value)


def _searched(entry: Entry) -> Sequence[Parameter]:
    """The parameters worth searching: the scheme's own, else `scale`."""
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


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.strip().lower(), text)
