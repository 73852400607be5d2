"""A whole init decision as a small value: strategy, parameters, exceptions, seed; YAML both ways.

The search writes a spec, the callback reads it, an ensemble varies its seed. A file holds either
the bare spec or a LightningCLI overlay whose `trainer.callbacks` has an InitCallback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from lightning_init.architecture.arguments import unknown
from lightning_init.architecture.params import Architecture, Role
from lightning_init.strategies.initializers import HEAD, Initializer, Overridden, deciding_key
from lightning_init.strategies.registry import Calibrator, Strategy, get
from lightning_init.strategies.seeds import check_seed

_KEYS = ("strategy", "params", "overrides", "seed")


@dataclass(frozen=True, slots=True)
class InitSpec:
    """How to initialize a model.

    Args:
        strategy: A registered name, see `lightning-init list`.
        params: The strategy's parameters; every strategy takes `scale`, a factor on std.
        overrides: `"role:embedding"`, `"role:head"` (output layers) or a glob on names ->
            another spec (or a strategy's name) for the tensors it matches; of several matching
            keys the last wins.
        seed: 0 to 2^63 - 1; None follows the global seed.

    Raises:
        ValueError: If a name is unknown or a value not legal; the text says what is legal.

    Example:
        >>> spec = InitSpec("orthogonal", {"gain": 1.5}, {"role:embedding": "normal"}, seed=3)
        >>> print(spec)
        orthogonal(gain=1.5, role:embedding: normal)
    """

    strategy: str = "auto"
    params: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, InitSpec] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.strategy, str):
            raise ValueError(f"strategy must be a name, but got {self.strategy!r}")
        entry = get(self.strategy)
        params = entry.check(_mapping("params", self.params))
        overrides = {}
        for key, value in _mapping("overrides", self.overrides).items():
            _check_key(key)
            overrides[key] = _as_override(key, value)
        if self.seed is not None:
            check_seed(self.seed)
        # Aliases are the same strategy: two specs that do the same compare equal.
        object.__setattr__(self, "strategy", entry.name)
        object.__setattr__(self, "params", params)
        object.__setattr__(self, "overrides", overrides)

    def __hash__(self) -> int:
        return hash(yaml.safe_dump(self.to_dict()))

    def build(self) -> Strategy:
        """The strategy with its parameters and exceptions."""
        base = get(self.strategy).build(self.params)
        if not self.overrides:
            return base
        made = {key: spec.build() for key, spec in self.overrides.items()}
        if not any(part.prepare for part in (base, *made.values())):
            return _combined(base, made)

        def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
            ready = {key: part.prepared(model, architecture) for key, part in made.items()}
            return _combined(base.prepared(model, architecture), ready)

        return _combined(base, made)._replace(prepare=prepare)

    def __str__(self) -> str:
        said = [f"{key}={_said(value)}" for key, value in self.params.items()]
        if self.strategy == "chain" and "steps" in self.params:
            said = [str(step) for step in self.params["steps"]]
        said += [f"{key}: {spec}" for key, spec in self.overrides.items()]
        return f"{self.strategy}({', '.join(said)})" if said else self.strategy

    def to_dict(self) -> dict[str, Any]:
        """Plain data: only what differs from the defaults, but always the strategy."""
        data: dict[str, Any] = {"strategy": self.strategy}
        if self.params:
            data["params"] = {key: _plain(value) for key, value in self.params.items()}
        if self.overrides:
            data["overrides"] = {key: spec.to_dict() for key, spec in self.overrides.items()}
        if self.seed is not None:
            data["seed"] = self.seed
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InitSpec:
        """The spec in a mapping with the keys strategy, params, overrides and seed.

        Raises:
            ValueError: If there are other keys, or a value is not legal.
        """
        for key in data:
            if key not in _KEYS:
                raise ValueError(unknown("key in an init spec", str(key), _KEYS))
        return cls(**{key: value for key, value in data.items() if value is not None})

    def save(self, path: str | Path) -> None:
        """Write the bare spec as YAML.

        Args:
            path: The file; its folder must exist.
        """
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> InitSpec:
        """Read a bare spec, or an overlay as the search writes it.

        Args:
            path: A YAML file.

        Returns:
            The spec.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds neither a spec nor an overlay with an InitCallback.
        """
        path = Path(path)
        hint = "write one with InitSpec(...).save(path) or `lightning-init search`"
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"no init spec at {path}: {hint}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            line = " ".join(str(error).split())
            raise ValueError(f"{path} is not YAML ({line}): {hint}") from None
        found = spec_in(data)
        if found is None:
            got = (
                f"keys {sorted(map(str, data))}" if isinstance(data, dict) else type(data).__name__
            )
            raise ValueError(
                f"{path} is not an init spec: it needs the key `strategy`, or "
                f"`trainer: callbacks+:` with an InitCallback, but has {got}; {hint}"
            )
        try:
            return cls.from_dict(found)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def spec_in(data: object) -> dict[str, Any] | None:
    """The spec in plain data: bare, or the InitCallback of an overlay; None if there is none.

    Example:
        >>> spec_in({"trainer": {"callbacks": [{"class_path": "lightning_init.InitCallback"}]}})
        {'strategy': 'auto'}
    """
    if not isinstance(data, dict):
        return None
    if "strategy" in data:
        return data
    trainer = data.get("trainer")
    if not isinstance(trainer, dict):
        return None
    for key in ("callbacks+", "callbacks"):
        callbacks = trainer.get(key)
        for item in callbacks if isinstance(callbacks, list) else [callbacks]:
            if isinstance(item, dict) and str(item.get("class_path", "")).endswith("InitCallback"):
                init = item.get("init_args") or {}
                return {"strategy": "auto", **{k: v for k, v in init.items() if k in _KEYS}}
    return None


def _combined(base: Strategy, made: Mapping[str, Strategy]) -> Strategy:
    """A strategy with exceptions; one that changes others changes the base."""
    rules: dict[str, Initializer] = {
        key: part.initializer if part.on_top is None else part.on_top(base.initializer)
        for key, part in made.items()
    }
    calibrations: dict[str | None, Calibrator | None] = {None: base.calibrate_}
    calibrations.update({key: part.calibrate_ for key, part in made.items()})
    on_top = base.on_top
    return Strategy(
        Overridden(base.initializer, rules),
        _calibrate_parts(rules, calibrations) if any(calibrations.values()) else None,
        on_top and (lambda below: Overridden(on_top(below), rules)),
        notes=tuple(note for part in (base, *made.values()) for note in part.notes),
        buffers={k: v for part in (base, *made.values()) for k, v in part.buffers.items()},
    )


def _calibrate_parts(
    rules: Mapping[str, Initializer], calibrations: Mapping[str | None, Calibrator | None]
) -> Calibrator:
    """Each calibration for the tensors whose distribution it owns."""

    def calibrate_(model: Any, plan: Any, forward: Any) -> list[Any]:
        found: list[Any] = []
        for key, calibrate in calibrations.items():
            if calibrate is not None:
                part = plan.where(lambda info, key=key: deciding_key(rules, info) == key)
                found += calibrate(model, part, forward) or ()
        return found

    return calibrate_


def _said(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(value: object) -> object:
    if isinstance(value, InitSpec):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check_key(key: object) -> None:
    if not isinstance(key, str) or not key:
        raise ValueError(f"an override's key must be a text, but got {key!r}")
    roles = [str(role) for role in Role] + [HEAD.removeprefix("role:")]
    if key.startswith("role:") and key.removeprefix("role:") not in roles:
        raise ValueError(unknown("role", key.removeprefix("role:"), roles))


def _as_override(key: str, value: object) -> InitSpec:
    if isinstance(value, str):
        value = InitSpec(value)
    elif isinstance(value, Mapping):
        value = InitSpec.from_dict(value)
    if not isinstance(value, InitSpec):
        raise ValueError(f"override {key!r} must be a strategy's name or a spec, but got {value!r}")
    if value.overrides or value.seed is not None:
        raise ValueError(f"override {key!r} may have `strategy` and `params` only")
    return value


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping of names to values, but got {value!r}")
    return value
