"""What is searched: strategies with their declared ranges, scales, keys of the configuration.

The space is flat: every axis is always suggested, and what a strategy does not take is ignored.
Samplers then see one fixed set of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_init.architecture.arguments import Parameter, unknown
from lightning_init.search.axis import Axis as Axis, around as around, parse_axis as parse_axis
from lightning_init.search.space_file import (
    FACTOR as FACTOR,
    from_plain,
    read_file,
    to_plain,
    write_file,
)
from lightning_init.strategies.registry import SCALE, Entry, entries, get
from lightning_init.strategies.rescaled import PARTS as _PARTS
from lightning_init.strategies.spec import InitSpec

STRATEGY = "strategy"
ALWAYS = ("keep", "auto")  # what everything is compared with
ALL = "all"
PARTS = (ALL, *(part for part in _PARTS if part != "scale"))


@dataclass(frozen=True)
class Space:
    """Strategies, their parameters, scales of parts of the model, and keys of the configuration.

    Args:
        strategies: Names, or specs, which are tried as they are; `keep` (as built) and `auto` are
            always among them, and always first.
        config: Dotted configuration key -> axis.
        fixed: The specs among the strategies, by label.
        scales: Part of the model (`all`, `embedding`, `position`, `head`, `residual`,
            `attention`, `recurrent`) -> axis of a factor on the std of what is drawn there, on top
            of every strategy; widened to hold 1, where recipes begin. What `keep` leaves as built
            has none.
        ranges: Strategy -> parameter -> axis, instead of the declared range.
        lists: The user's own lists that keys of `config` reach into (`trainer.callbacks.0...`):
            a configuration file says a list as a whole or not at all.

    Raises:
        ValueError: If a name is unknown or a value is not legal.

    Example:
        >>> space = Space(("orthogonal",), scales={"head": Axis(0.1, 1.0, log=True)})
        >>> sorted(space.axes)
        ['gain', 'scale', 'scale.head', 'strategy']
        >>> point = {"strategy": "orthogonal", "gain": 1.5, "scale": 2.0, "scale.head": 0.1}
        >>> print(space.spec(point))
        chain(orthogonal(gain=1.5), rescaled(head=0.1))
    """

    strategies: tuple[str | InitSpec, ...] = ()
    config: Mapping[str, Axis] = field(default_factory=dict)
    fixed: Mapping[str, InitSpec] = field(default_factory=dict)
    scales: Mapping[str, Axis] = field(default_factory=dict)
    ranges: Mapping[str, Mapping[str, Axis]] = field(default_factory=dict)
    lists: Mapping[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.strategies, str):
            raise ValueError(
                f"strategies must be a tuple of names, but got {self.strategies!r}: write "
                f"({self.strategies!r},)"
            )
        _check_axes("config", self.config)
        _check_axes("scales", self.scales)
        for part in self.scales:
            if part not in PARTS:
                raise ValueError(unknown("part of a model", str(part), PARTS))
        chosen = self.strategies or tuple(entry.name for entry in entries() if entry.search)
        fixed = {str(one): one for one in chosen if isinstance(one, InitSpec)}
        fixed = {label: replace(one, seed=None) for label, one in {**self.fixed, **fixed}.items()}
        names = [str(one) if str(one) in fixed else get(str(one)).name for one in chosen]
        names = list(dict.fromkeys([*ALWAYS, *names]))
        put = object.__setattr__
        put(self, "strategies", tuple(names))
        put(self, "config", dict(self.config))
        put(self, "fixed", {name: fixed[name] for name in names if name in fixed})
        scales = {part: _narrowed("rescaled", "scale", axis) for part, axis in self.scales.items()}
        put(self, "scales", {part: axis.at(1.0) for part, axis in scales.items()})
        ranges: dict[str, dict[str, Axis]] = {}
        for key, own in self.ranges.items():
            if (name := get(key).name) not in names or name in fixed:
                raise ValueError(f"ranges: {unknown('strategy', name, names)}")
            ranges[name] = {each: _narrowed(name, each, axis) for each, axis in own.items()}
        put(self, "ranges", ranges)
        for key in self.config:
            if key in replace(self, config={}).axes:
                raise ValueError(f"config: {key!r} is the name of an axis of the strategies")

    @property
    def names(self) -> tuple[str, ...]:
        """The strategies by name, the specs by label."""
        return tuple(str(one) for one in self.strategies)

    def _searched(self, name: str) -> Sequence[Parameter]:
        """The parameters of a strategy that are axes."""
        if name in self.fixed:
            return ()
        entry, own = get(name), self.ranges.get(name, {})
        declared = [p for p in _searched(entry) if not (p is SCALE and ALL in self.scales)]
        return [p for p in entry.parameters.values() if p in declared or p.name in own]

    def _axis(self, name: str, parameter: Parameter) -> Axis:
        return self.ranges.get(name, {}).get(parameter.name) or _axis(parameter)

    @property
    def axes(self) -> dict[str, Axis]:
        """Every axis by name; strategies that declare the same parameter share one."""
        found: dict[str, Axis] = {STRATEGY: Axis(choices=self.names, current="keep")}
        for name in self.names:
            for parameter in self._searched(name):
                found[self._axis_name(name, parameter)] = self._axis(name, parameter)
        scales = {f"scale.{part}": axis for part, axis in self.scales.items()}
        return {**found, **scales, **self.config}

    def _axis_name(self, strategy: str, parameter: Parameter) -> str:
        def declared(name: str, one: Parameter) -> tuple[Parameter, Axis | None]:
            return replace(one, default=None), self.ranges.get(name, {}).get(one.name)

        mine = declared(strategy, parameter)
        every = [(n, p) for n in self.names for p in self._searched(n) if p.name == parameter.name]
        shared = all(declared(*one) == mine for one in every)
        return parameter.name if shared else f"{strategy}.{parameter.name}"

    def spec(self, values: Mapping[str, Any]) -> InitSpec:
        """The init that a point of the space means."""
        name = values[STRATEGY]
        if name in self.fixed:
            base = self.fixed[name]
        else:
            params = {p.name: values[self._axis_name(name, p)] for p in self._searched(name)}
            defaults = get(name).parameters
            base = InitSpec(name, {k: v for k, v in params.items() if v != defaults[k].default})
        factors = {part: values[f"scale.{part}"] for part in self.scales}
        return rescale(base, {part: factor for part, factor in factors.items() if factor != 1})

    def used(self, values: Mapping[str, Any]) -> frozenset[str]:
        """The axes that a point depends on; the others are suggested, and ignored."""
        name = values[STRATEGY]
        own = {self._axis_name(name, parameter) for parameter in self._searched(name)}
        scales = () if name == "keep" else (f"scale.{part}" for part in self.scales)
        return frozenset({STRATEGY, *own, *scales, *self.config})

    def gated(self, values: Mapping[str, Any]) -> bool:
        """Whether an unhealthy start ends this trial: not what everything is compared with."""
        return self.spec(values) not in (InitSpec("keep"), InitSpec("auto"))

    def overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration keys that a point of the space sets."""
        return {key: values[key] for key in self.config}

    def recipes(self) -> list[dict[str, Any]]:
        """The first points: the as-built model, `auto`, then each strategy at its defaults."""
        axes = self.axes
        start = {key: axis.start for key, axis in axes.items()}
        found = []
        for name in self.names:
            point = {**start, STRATEGY: name}
            for parameter in self._searched(name):
                key = self._axis_name(name, parameter)
                if axes[key].holds(parameter.default):
                    point[key] = parameter.default
            found.append(point)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data, which `from_dict` makes the same space of."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, data: object) -> Space:
        """The space in plain data: the keys strategies, axes and scales, each may be left out.

        Args:
            data: `strategies`: a list of names, of specs (mappings with `strategy`), and of
                `{name: {parameter: axis}}` with narrower ranges. `axes`: configuration key -> axis.
                `scales`: part of the model -> axis. An axis is `[low, high]`, `[a, b, c]`, or a
                mapping with low, high and log.

        Raises:
            ValueError: If something is not legal; the text names the closest that is.

        Example:
            >>> data = {"strategies": [{"orthogonal": {"gain": [0.8, 1.2]}}], "scales": {"head": None}}
            >>> space = Space.from_dict(data)
            >>> space.axes["gain"].high, space.axes["scale.head"].high
            (1.2, 10.0)
        """
        return cls(**from_plain(data))

    def save(self, path: str | Path) -> None:
        """Write it as YAML, for `--space`."""
        write_file(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Space:
        """Read a YAML file, see `from_dict`; a strategy may also be a file with an init spec.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds something else.
        """
        data = read_file(path)
        try:
            return cls(**from_plain(data, Path(path).parent))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def rescale(spec: InitSpec, factors: Mapping[str, float]) -> InitSpec:
    """A spec with factors on std on top, by part of the model; what is kept as built has none.

    Example:
        >>> print(rescale(InitSpec("lsuv"), {"all": 2.0}), rescale(InitSpec("keep"), {"all": 2.0}))
        chain(lsuv, rescaled(scale=2)) keep
    """
    if not factors or (spec.strategy == "keep" and not spec.overrides):
        return spec
    last = InitSpec("rescaled", {"scale" if k == ALL else k: v for k, v in factors.items()})
    flat = spec.strategy == "chain" and set(spec.params) <= {"steps"} and not spec.overrides
    below = spec.params.get("steps", ("auto",)) if flat else (spec,)
    return InitSpec("chain", {"steps": [*below, last]})


def scheme(spec: InitSpec) -> str:
    """The name of a strategy, also where factors lie on top of it.

    Example:
        >>> scheme(rescale(InitSpec("lsuv"), {"all": 2.0})), scheme(InitSpec("chain"))
        ('lsuv', 'chain')
    """
    chained: Sequence[InitSpec] = spec.params.get("steps", ())
    steps = chained if spec.strategy == "chain" else []
    below = len(steps) == 2 and steps[1].strategy == "rescaled"
    return steps[0].strategy if below else spec.strategy


def _check_axes(name: str, axes: Mapping[str, Axis]) -> None:
    for key, axis in axes.items():
        if not isinstance(axis, Axis):
            raise ValueError(f"{name}[{key!r}] must be an Axis, but got {axis!r}")


def _narrowed(name: str, key: str, axis: Axis) -> Axis:
    """An axis of a parameter, of the parameter's own kind; all of it must be legal."""
    parameters = get(name).parameters
    if key not in parameters:
        raise ValueError(f"{name}: {unknown('parameter', key, parameters)}")
    _check_axes(name, {key: axis})
    parameter = parameters[key]
    for value in axis.choices or (axis.low, axis.high):
        parameter.check(value, name)
    if not axis.choices:
        if parameter.kind not in (int, float) or parameter.converted:
            raise ValueError(f"{name}: {key!r} is no number: give a list of {parameter.legal}")
        axis = replace(axis, whole=parameter.kind is int)
    return axis if axis.current is None or axis.holds(axis.current) else replace(axis, current=None)


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
