"""A finding: what is wrong, where, how far beyond which limit, why probably, and what to do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, overload

from lightning_init.architecture.arguments import Parameter, Range, parameters_of, unknown
from lightning_init.architecture.readings import Readings

Severity = Literal["error", "warning", "info"]
Detector = Callable[..., "Iterator[Finding]"]
F = TypeVar("F", bound=Detector)
Factor = Annotated[float, Range(1.0, 1e12, log=True)]
Share = Annotated[float, Range(0.0, 1.0)]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        detector: Name of the rule.
        severity: `error` may stop a run, `warning` is printed, `info` explains.
        where: The layer or tensor by name, `"loss"` for the loss.
        step: Training step, 0 is before the first update.
        value: What was measured.
        limit: The limit it broke.
        message: Symptom, with number and limit.
        likely_cause: Causes, the likeliest first.
        remedy: What to change or type.
        reference: Where the rule comes from.
    """

    detector: str
    severity: Severity
    where: str
    step: int
    value: float
    limit: float
    message: str
    likely_cause: str
    remedy: str
    reference: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not a number becomes None."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in dataclasses.asdict(self).items()
        }

    def __str__(self) -> str:
        return (
            f"{self.severity.upper()} {self.detector} at {self.where}, step {self.step}: "
            f"{self.message}\n  likely cause: {self.likely_cause}\n  fix: {self.remedy}"
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered detector: its name, function and limits."""

    name: str
    function: Detector
    parameters: dict[str, Parameter]
    order: int

    @property
    def summary(self) -> str:
        """First sentence of the docstring."""
        text = " ".join((self.function.__doc__ or "").strip().split("\n\n")[0].split())
        return text.removesuffix(".")


_REGISTRY: dict[str, Entry] = {}


@overload
def detector(function: F, /) -> F: ...
@overload
def detector(*, order: int) -> Callable[[F], F]: ...
def detector(function: F | None = None, /, *, order: int = 50) -> F | Callable[[F], F]:
    """Register a function from readings to findings under its own name.

    Args:
        function: Takes `Readings`, then limits with defaults; yields `Finding`s.
        order: Of several findings the one whose rule has the lowest order is named first, since
            it is nearest to the root cause.

    Returns:
        The function itself.

    Example:
        >>> @detector(order=90)
        ... def too_slow(readings: Readings, *, limit: float = 1.0) -> Iterator[Finding]:
        ...     "Nothing yet."
        ...     yield from ()
        >>> list(get("too_slow").parameters)
        ['limit']
        >>> del _REGISTRY["too_slow"]
    """

    def register(function: F) -> F:
        name = function.__name__
        _REGISTRY[name] = Entry(name, function, parameters_of(function, skip=1), order)
        return function

    return register if function is None else register(function)


def entries() -> tuple[Entry, ...]:
    """All registered detectors, in the order in which they name a root cause."""
    from lightning_init.health import detectors, growth  # noqa: F401  # importing registers them

    return tuple(sorted(_REGISTRY.values(), key=lambda entry: entry.order))


def get(name: str) -> Entry:
    """The detector of that name.

    Raises:
        ValueError: If there is none; the closest names come first.
    """
    found = {entry.name: entry for entry in entries()}
    if name not in found:
        raise ValueError(unknown("detector", name, found))
    return found[name]


def examine(readings: Readings, names: tuple[str, ...] | None = None) -> tuple[Finding, ...]:
    """The findings of all (or the named) detectors, errors first, then nearest to the root."""
    chosen = entries() if names is None else tuple(get(name) for name in names)
    found = [finding for entry in chosen for finding in entry.function(readings)]
    rank = {"error": 0, "warning": 1, "info": 2}
    return tuple(sorted(found, key=lambda finding: rank[finding.severity]))
