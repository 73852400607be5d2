"""The space that a command's options and the user's configuration ask for."""

from __future__ import annotations

import pydoc
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_init.architecture.arguments import unknown
from lightning_init.architecture.params import Architecture
from lightning_init.search.applicable import space_for
from lightning_init.search.axis import Axis, around, parse_axis
from lightning_init.search.job import ConfigError, Job
from lightning_init.search.keys import every_item, lists_of, unknown_key
from lightning_init.search.parsed import DROPPED
from lightning_init.search.space import FACTOR, PARTS, Space
from lightning_init.search.space_file import from_plain, read_file
from lightning_init.strategies.needs import UnsuitableError
from lightning_init.strategies.registry import get
from lightning_init.strategies.spec import InitSpec


def wanted(
    job: Job, options: Namespace, architecture: Architecture
) -> tuple[Space, str, tuple[str, ...]]:
    """The space, the learning rate's key (`""` if it is fixed), and what to say about them.

    What the command line says goes before what `--space FILE` says; every axis of the
    configuration begins at the user's own value.

    Args:
        job: The configuration.
        options: `space`, `strategies`, `axis`, `scale`, `lr_key`; what is missing is not asked for.
        architecture: Of the model.

    Raises:
        ConfigError: If something is not legal for this configuration or this model.
    """
    given = _file(options)
    axes = {**given.get("config", {}), **_axes(options)}
    plain = job.plain()
    values = dict(every_item(plain))
    for key in axes:
        if key not in values:
            raise ConfigError(f"--axis: {unknown_key(key, plain)}")
    notes = [note for key in axes for note in _left_out(key, values)]
    axes = {key: _at(key, axis, values[key], notes) for key, axis in axes.items()}
    axes, lr_key = _learning_rate(job, options, axes, notes)
    scales = {**given.get("scales", {}), **_scales(options)}
    try:
        names, fixed, ranges = _strategies(options, given)
        space, said = space_for(architecture, names, axes, scales, fixed=fixed, ranges=ranges)
    except UnsuitableError as error:
        raise ConfigError(f"--strategies: {error}") from None
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from None
    space = replace(space, lists=lists_of(axes, plain))
    return space, lr_key, (*notes, *said)


def _file(options: Namespace) -> dict[str, Any]:
    """What `--space FILE` asks for, as arguments of a space."""
    path = options.get("space")
    if path is None:
        return {}
    try:
        return from_plain(read_file(path), Path(path).parent)
    except (ValueError, OSError) as error:
        raise ConfigError(f"--space {path}: {error}") from None


def _axes(options: Namespace) -> dict[str, Axis]:
    try:
        return dict(parse_axis(text) for text in options.get("axis") or [])
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _scales(options: Namespace) -> dict[str, Axis]:
    """`PART`, `PART=LOW:HIGH[:log]` or `PART=a,b,c`."""
    found = {}
    for text in options.get("scale") or []:
        part = text.partition("=")[0]
        if part not in PARTS:
            raise ConfigError(f"--scale: {unknown('part of a model', part, PARTS)}")
        try:
            found[part] = parse_axis(text, "--scale")[1] if "=" in text else FACTOR
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return found


def _strategies(
    options: Namespace, given: Mapping[str, Any]
) -> tuple[tuple[str, ...], dict[str, InitSpec], dict[str, dict[str, Axis]]]:
    """Names, specs by label, narrower ranges."""
    text = options.get("strategies") or ""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    ranges = given.get("ranges", {})
    if not names:
        return given.get("strategies", ()), given.get("fixed", {}), ranges
    fixed = {name: InitSpec.load(name) for name in names if name.endswith((".yaml", ".yml"))}
    chosen = {get(name).name for name in names if name not in fixed}
    return names, fixed, {name: own for name, own in ranges.items() if name in chosen}


def _at(key: str, axis: Axis, value: Any, notes: list[str]) -> Axis:
    """The axis that begins where the user is; a note if it had to be widened, or cannot."""
    try:
        found = axis.at(value)
    except ValueError:
        notes.append(
            f"{key} is {value} in your configuration, which {axis} cannot hold: trials begin at "
            f"{axis.start}"
        )
        return axis
    if not axis.holds(value):
        notes.append(f"{key}: {axis} is widened to hold your own {value}")
    return found


def _left_out(key: str, values: Mapping[str, Any]) -> Iterator[str]:
    """A note where trials leave out the callback that a key belongs to."""
    found = re.match(r"trainer\.callbacks\.\d+\.", key)
    name = values.get(f"{found[0]}class_path", "") if found else ""
    kind = pydoc.locate(name) if name else None
    if isinstance(kind, type) and issubclass(kind, DROPPED):
        yield f"{key} changes nothing: trials leave {kind.__name__} out"


def _learning_rate(
    job: Job, options: Namespace, axes: dict[str, Axis], notes: list[str]
) -> tuple[dict[str, Axis], str]:
    """The axes with one for the learning rate, and its key."""
    rates = job.learning_rates()
    chosen = options.get("lr_key")
    if chosen is not None and chosen not in rates:
        named = {k: v for k, v in every_item(job.plain()) if isinstance(v, float) and v > 0}
        others = {k: v for k, v in named.items() if not k.startswith("trainer.") or k == chosen}
        if chosen not in others:  # a learning rate may have any name, if the user says so
            raise ConfigError(f"--lr-key: {unknown('learning rate', chosen, rates or others)}")
        rates = others
    if chosen is None and len(rates) == 1:
        chosen = next(iter(rates))
    if chosen is not None:
        return {chosen: around(rates[chosen]), **axes}, chosen
    if searched := [key for key in axes if key in rates]:
        return axes, searched[0]
    found = f"{len(rates)} learning rates" if rates else "no learning rate"
    notes.append(
        f"{found} in the configuration: the learning rate is fixed, and at a wrong one the "
        "ranking of inits misleads; name one with --lr-key"
    )
    return axes, ""
