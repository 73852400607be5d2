"""A space as plain data and as a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_init.architecture.arguments import unknown
from lightning_init.search.axis import Axis
from lightning_init.strategies.registry import get
from lightning_init.strategies.spec import InitSpec

if TYPE_CHECKING:
    from lightning_init.search.space import Space

FACTOR = Axis(0.1, 10.0, log=True, current=1.0)  # of a scale that is only named
_KEYS = ("strategies", "axes", "scales", "lists")


def to_plain(space: Space) -> dict[str, Any]:
    """A space as plain data."""
    data: dict[str, Any] = {"strategies": [_strategy(space, name) for name in space.names]}
    if space.config:
        data["axes"] = {key: axis.to_dict() for key, axis in space.config.items()}
    if space.scales:
        data["scales"] = {part: axis.to_dict() for part, axis in space.scales.items()}
    if space.lists:
        data["lists"] = dict(space.lists)
    return data


def from_plain(data: object, folder: Path = Path()) -> dict[str, Any]:
    """What a space is made of, from plain data.

    Args:
        data: See `Space.from_dict`.
        folder: Where files with init specs are, if their paths are relative.

    Raises:
        ValueError: If something is not legal.
    """
    data = _mapping("a space", data)
    for key in data:
        if key not in _KEYS:
            raise ValueError(unknown("key of a space", str(key), _KEYS))
    names: list[str] = []
    fixed: dict[str, InitSpec] = {}
    ranges: dict[str, dict[str, Axis]] = {}
    listed = data.get("strategies") or []
    if isinstance(listed, Mapping):
        listed = [{name: own} for name, own in listed.items()]
    if not isinstance(listed, list):
        raise ValueError(f"strategies must be a list of names or specs, but got {listed!r}")
    for item in listed:
        if isinstance(item, str):
            names.append(item)
            if item.endswith((".yaml", ".yml")):
                fixed[item] = InitSpec.load(folder / item)
        elif "strategy" in (item := _mapping("a strategy", item)):
            spec = InitSpec.from_dict({k: v for k, v in item.items() if k != "label"})
            label = str(item.get("label", spec))
            names.append(label)
            fixed[label] = spec
        else:
            for name, own in item.items():
                names.append(str(name))
                if own:
                    ranges[get(str(name)).name] = _ranges(str(name), own)
    return {
        "strategies": tuple(names),
        "config": _axes("axes", data.get("axes")),
        "fixed": fixed,
        "scales": _axes("scales", data.get("scales")),
        "ranges": ranges,
        "lists": dict(_mapping("lists", data.get("lists"))),
    }


def read_file(path: str | Path) -> object:
    """The plain data in a YAML file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = [str(one) for one in sorted(Path(path).parent.glob("*.y*ml"))]
        raise FileNotFoundError(unknown("file with a space", str(path), there)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def write_file(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write plain data as YAML."""
    Path(path).write_text(yaml.safe_dump(dict(data), sort_keys=False), encoding="utf-8")


def _strategy(space: Space, name: str) -> object:
    if name in space.fixed:
        spec = space.fixed[name]
        label = {} if str(spec) == name else {"label": name}
        return {**label, **spec.to_dict()}
    own = space.ranges.get(name)
    # What is left out of a range is as declared, so that a linear one says so.
    ranges = {key: {"log": axis.log, **axis.to_dict()} for key, axis in (own or {}).items()}
    return {name: ranges} if own else name


def _ranges(name: str, data: object) -> dict[str, Axis]:
    """The axes of a strategy's parameters; logarithmic as declared, unless they say."""
    parameters, found = get(name).parameters, {}
    for key, value in _mapping(f"strategy {name}", data).items():
        if key not in parameters:
            raise ValueError(f"{name}: {unknown('parameter', str(key), parameters)}")
        try:
            axis = Axis.from_dict(value)
            limits = parameters[key].range
            silent = not isinstance(value, Mapping) or "log" not in value
            if silent and not axis.choices and limits is not None and limits.log:
                axis = Axis.from_dict({**axis.to_dict(), "log": True})
        except ValueError as error:
            raise ValueError(f"{name}: parameter {key!r}: {error}") from None
        found[str(key)] = axis
    return found


def _axes(what: str, data: object) -> dict[str, Axis]:
    found = {}
    for key, value in _mapping(what, data).items():
        try:
            named = value is None and what == "scales"
            found[str(key)] = FACTOR if named else Axis.from_dict(value)
        except ValueError as error:
            raise ValueError(f"{what}: {key}: {error}") from None
    return found


def _mapping(what: str, data: object) -> Mapping[Any, Any]:
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a mapping of names to values, but got {data!r}")
    return data
