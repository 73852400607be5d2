"""The rules by name, and what a set of readings says under them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, overload

from lightning_init.architecture.arguments import Parameter, Range, parameters_of, unknown
from lightning_init.architecture.readings import Readings
from lightning_init.health.findings import Finding
from lightning_init.health.roots import roots, with_scheme

Detector = Callable[..., "Iterator[Finding]"]
F = TypeVar("F", bound=Detector)
Factor = Annotated[float, Range(1.0, 1e12, log=True)]
Share = Annotated[float, Range(0.0, 1.0)]
Profile = Literal["default", "textbook"]
Rules = Iterable[str] | Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered detector.

    Attributes:
        name: Its name.
        function: Readings and limits in, findings out.
        parameters: Its limits.
        order: Of findings of one step the one with the lowest order is nearest to the root cause.
        explains: Names of the detectors whose findings are consequences of this one's; `"*"` for
            all of a higher order.
        profile: The set of rules to which it belongs.
    """

    name: str
    function: Detector
    parameters: dict[str, Parameter]
    order: int
    explains: tuple[str, ...] = ()
    profile: Profile = "default"

    @property
    def summary(self) -> str:
        """First sentence of the docstring."""
        text = " ".join((self.function.__doc__ or "").strip().split("\n\n")[0].split())
        return text.removesuffix(".")


_REGISTRY: dict[str, Entry] = {}


@overload
def detector(function: F, /) -> F: ...
@overload
def detector(
    *, order: int = ..., explains: Iterable[str] = ..., profile: Profile = ...
) -> Callable[[F], F]: ...
def detector(
    function: F | None = None,
    /,
    *,
    order: int = 50,
    explains: Iterable[str] = (),
    profile: Profile = "default",
) -> F | Callable[[F], F]:
    """Register a function from readings to findings under its own name.

    Args:
        function: Takes `Readings`, then limits with defaults; yields `Finding`s.
        order: Of findings of one step the one with the lowest order is named first, since it is
            nearest to the root cause.
        explains: Names of detectors whose later findings are consequences of this one's, `"*"` for
            all of a higher order: they are reported with it, as one.
        profile: `"default"`, or `"textbook"` for absolute limits, which are used on request.

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
        _REGISTRY[name] = Entry(
            name, function, parameters_of(function, skip=1), order, tuple(explains), profile
        )
        return function

    return register if function is None else register(function)


def entries(profile: Profile | None = None) -> tuple[Entry, ...]:
    """The registered detectors, of one profile or all, in the order in which they name a cause."""
    importlib.import_module("lightning_init.health.detectors")  # which registers them
    chosen = [e for e in _REGISTRY.values() if profile in (None, e.profile)]
    return tuple(sorted(chosen, key=lambda entry: entry.order))


def get(name: str) -> Entry:
    """The detector of that name.

    Raises:
        ValueError: If there is none; the closest names come first.
    """
    known = {entry.name: entry for entry in entries()}
    if name not in known:
        raise ValueError(unknown("detector", name, known))
    return known[name]


class Used(dict[str, dict[str, Any]]):
    """Detectors that were looked up, by name, with the limits that are not their own."""


def rules(chosen: Rules | None = None, profile: Profile = "default") -> Used:
    """Which detectors are used, and with which limits other than their own.

    Args:
        chosen: Names: these alone. Names with limits, `{"dead_units": {"limit": 0.9}}`: all of the
            profile, some with these limits. None: all of the profile.
        profile: `"default"` or `"textbook"`.

    Raises:
        TypeError: If `chosen` is neither.
        ValueError: If there is no such detector, limit or profile.

    Example:
        >>> rules(["non_finite"])
        {'non_finite': {}}
        >>> used = rules({"forward_growth": {"grow": 3.0}})
        >>> used["forward_growth"], used["non_finite"]
        ({'grow': 3.0}, {})
    """
    if isinstance(chosen, Used):
        return chosen
    if profile not in get_args(Profile):
        raise ValueError(unknown("profile", str(profile), get_args(Profile)))
    everything = Used({entry.name: {} for entry in entries(profile)})
    if chosen is None:
        return everything
    if isinstance(chosen, str) or not isinstance(chosen, Iterable):
        raise TypeError(
            "detectors must be a list of names, or a mapping from names to limits, but got "
            f"{chosen!r}"
        )
    if isinstance(chosen, Mapping):
        changed = {name: _checked(get(name), limits) for name, limits in chosen.items()}
        return Used(everything | changed)
    return Used({get(name).name: {} for name in chosen})


def _checked(entry: Entry, limits: Mapping[str, Any] | None) -> dict[str, Any]:
    if limits is not None and not isinstance(limits, Mapping):
        first = next(iter(entry.parameters), "limit")
        raise TypeError(
            f"the limits of {entry.name} must be a mapping, but got {limits!r}: "
            f'detectors={{"{entry.name}": {{"{first}": {limits!r}}}}}'
        )
    found = {}
    for key, value in (limits or {}).items():
        if key not in entry.parameters:
            raise ValueError(unknown(f"limit of {entry.name}", key, entry.parameters))
        found[key] = entry.parameters[key].check(value, entry.name)
    return found


def examine(
    readings: Readings, chosen: Rules | None = None, profile: Profile = "default"
) -> tuple[Finding, ...]:
    """The findings of all, or of the chosen detectors: root causes, errors first.

    Args:
        readings: What was measured.
        chosen: See `rules`.
        profile: `"default"`, or `"textbook"` for absolute limits.

    Returns:
        Findings; those that another one explains are its `consequences`.
    """
    used = rules(chosen, profile)
    order = {entry.name: entry for entry in entries()}
    found = [
        with_scheme(finding, readings)
        for name in sorted(used, key=lambda name: order[name].order)
        for finding in _asked(order[name], readings, used[name])
    ]
    return roots(found, {name: (e.order, e.explains) for name, e in order.items()})


def _asked(entry: Entry, readings: Readings, limits: Mapping[str, Any]) -> list[Finding]:
    """What a rule finds; one that fails is said, and ends nobody's training."""
    try:
        return list(entry.function(readings, **limits))
    except Exception as error:
        problem = f"the rule itself failed ({type(error).__name__}: {error})"
        others = f"leave it out: detectors= with the other names, without {entry.name!r}"
        step = readings.steps[-1].step if readings.steps else 0
        cause = "a mistake in the rule, which says nothing of the model"
        nan = float("nan")
        return [Finding(entry.name, "info", "the rule", step, nan, nan, problem, cause, others)]
