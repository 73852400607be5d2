"""Who is compared: an init with its configuration, and its runs on seeds that all share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_init.search.keys import leaf
from lightning_init.strategies.spec import InitSpec

Kind = Literal["keep", "tuned", "finalist"]


@dataclass(frozen=True, slots=True)
class Run:
    """One stored run.

    Attributes:
        seed: Of construction, init and data order.
        metric: The first goal, None if the run failed.
        reason: Why it failed, `""` if it did not.
        curve: (step, training loss) pairs.
        info: Plain facts, see `Outcome.info`.
        others: The further goals.
        readings: (step, metric) pairs on the way.
        steps: Training steps asked for.
    """

    seed: int
    metric: float | None
    reason: str
    curve: tuple[tuple[int, float], ...]
    info: Mapping[str, Any]
    others: tuple[float, ...] = ()
    readings: tuple[tuple[int, float], ...] = ()
    steps: int = 0

    def value(self, goal: int) -> float | None:
        """One goal's value, None if the run failed."""
        return None if self.metric is None else (self.metric, *self.others)[goal]

    def reading(self, step: int) -> float | None:
        """The metric at an earlier step, None if it was not read there."""
        return dict(self.readings).get(step)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An init with its configuration, and its runs.

    Attributes:
        number: Of the screening trial that proposed it, -1 if none did.
        spec: The init.
        config: Dotted configuration key -> value.
        runs: One per seed, on the same seeds for all that are compared.
        kind: `keep`, as built with the user's configuration; `tuned`, as built at its own best
            learning rate; `finalist`.
        name: What it is called instead of its spec, `""` for the spec.
    """

    number: int
    spec: InitSpec
    config: Mapping[str, Any]
    runs: tuple[Run, ...] = ()
    kind: Kind = "finalist"
    name: str = field(default="", compare=False)

    @property
    def is_baseline(self) -> bool:
        """Whether it is what everything is measured against."""
        return self.kind == "keep"

    @property
    def metrics(self) -> list[float | None]:
        """One per seed, None where a run failed."""
        return [run.metric for run in self.runs]

    def values(self, goal: int) -> list[float | None]:
        """One goal's value per seed, None where a run failed."""
        return [run.value(goal) for run in self.runs]

    @property
    def label(self) -> str:
        """Short and readable: `orthogonal(gain=1.2) lr=0.03`."""
        return label(self.spec, self.config, name=self.name)

    @property
    def content(self) -> str:
        """The same text for whatever would be the same run."""
        return content(self.spec, self.config)


def label(spec: InitSpec, config: Mapping[str, Any], *, without: str = "", name: str = "") -> str:
    """An init with its configuration for people.

    Args:
        spec: The init.
        config: Dotted configuration key -> value.
        without: A key that is left out.
        name: Instead of the spec's own text.
    """
    said = [f"{leaf(k)}={short(v)}" for k, v in config.items() if k != without]
    return " ".join([name or str(spec), *said])


def content(spec: InitSpec, config: Mapping[str, Any]) -> str:
    """The same text for the same init with the same configuration.

    Example:
        >>> content(InitSpec("keep"), {"b": 1, "a": 2})
        '{"config": {"a": 2, "b": 1}, "spec": {"strategy": "keep"}}'
    """
    spec_data = {key: value for key, value in spec.to_dict().items() if key != "seed"}
    return json.dumps({"spec": spec_data, "config": dict(config)}, sort_keys=True, default=str)


def short(value: Any) -> str:
    """Three digits of a number."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
