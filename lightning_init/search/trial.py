"""One trial and what it came to: the one seam between the search and whoever trains.

`Evaluate` is a function from a `Trial` and a `report(step, value) -> stop?` to an `Outcome`. Any
function with this signature can be searched; nothing here knows Lightning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lightning_init.strategies.spec import InitSpec

Report = Callable[[int, float], bool]


@dataclass(frozen=True, slots=True)
class Trial:
    """What to try.

    Attributes:
        spec: The init; its own seed is ignored.
        config: Dotted YAML keys -> values, e.g. `{"model.init_args.lr": 0.01}`.
        seed: Drives construction, init and data order alike.
        steps: Training steps.
        gated: Whether an unhealthy start ends the trial.
        marks: Earlier steps at which the metric is wanted too, for `Outcome.readings`.
        measured: Whether `Outcome.info` is to hold the distance travelled and the gap between
            training and validation; they cost a copy of the weights and a pass over some data.
    """

    spec: InitSpec
    config: Mapping[str, Any]
    seed: int
    steps: int
    gated: bool = True
    marks: tuple[int, ...] = ()
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial came to.

    Attributes:
        metric: The objective, None if there is no finite one; NaN and infinity become None.
        curve: (step, training loss) pairs.
        reason: Why it has no metric or was stopped, `""` if it is healthy.
        seconds: Wall time.
        info: Plain facts: fingerprints of the weights after init and after the last step, number
            of threads, steps done, findings; with `Trial.measured` also `distance` and `gap`.
        others: Further objectives, where several are searched at once.
        readings: (step, metric) pairs on the way, among them those at `Trial.marks`.
    """

    metric: float | None
    curve: tuple[tuple[int, float], ...] = ()
    reason: str = ""
    seconds: float = 0.0
    info: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[float, ...] = ()
    readings: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        # Tensors and NumPy's scalars are taken for what they say: a study holds plain numbers only.
        metric = None if self.metric is None else _number(self.metric)
        object.__setattr__(self, "metric", metric)
        object.__setattr__(self, "others", tuple(_number(one) for one in self.others))
        for name in ("curve", "readings"):
            points = tuple((int(step), _number(value)) for step, value in getattr(self, name))
            object.__setattr__(self, name, points)
        for value in (self.metric, *self.others):
            if value is not None and not math.isfinite(value):
                object.__setattr__(self, "reason", self.reason or f"the metric is {value}")
                object.__setattr__(self, "metric", None)
                object.__setattr__(self, "others", ())
                return

    @property
    def values(self) -> tuple[float, ...]:
        """Every objective in order; empty if there is no metric."""
        return () if self.metric is None else (self.metric, *self.others)


def _number(value: Any) -> float:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"an outcome holds numbers, but got {value!r}")
    return float(value)


class Evaluate(Protocol):
    """Runs one trial."""

    def __call__(self, trial: Trial, report: Report) -> Outcome:
        """The outcome; `report(step, training loss)` says whether to stop."""
