"""Named strategies: one decorated function is the scheme, its schema and its catalogue entry.

`@strategy` reads the function's signature: annotated ranges become validation, YAML schema and
search space; the docstring becomes the catalogue. Packages add their own through the entry-point
group `lightning_init.plugins`, each entry naming a module to import.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple, TypeVar, overload

from torch import Tensor, nn

from lightning_init.architecture.arguments import Parameter, Range, parameters_of, unknown
from lightning_init.architecture.params import Architecture
from lightning_init.strategies.initializers import Initializer, Scaled
from lightning_init.strategies.needs import NEEDS, check_needs, check_wants, holds

Calibrator = Callable[[nn.Module, Any, Callable[[], object]], Any]
StrategyFunction = Callable[..., "Strategy"]
F = TypeVar("F", bound=StrategyFunction)

BUILT_IN = (
    *("auto", "chain", "constants", "variance", "sparse", "defaults", "orthogonal", "identity"),
    *("residual", "transformer", "attention", "deep", "recurrent", "periodic", "heads", "lsuv"),
    *("channels", "metainit", "gradinit", "transfer", "rescaled"),
)


class Strategy(NamedTuple):
    """How to initialize a model: a pure initializer, and a calibration on data if it needs one.

    Attributes:
        initializer: From the description of a tensor to its distribution.
        calibrate_: What runs the model on data after the draw; may return `Calibration`s.
        on_top: For a scheme that changes what others decide: the initializer that results on top
            of another one. None in a scheme that decides by itself.
        on_calibration: For a scheme that changes others: what becomes of a calibration below it;
            `on_top` is not called then. None where such a calibration may run as it is.
        prepare: For a scheme that needs to see the whole model first: from the model and its
            description to the strategy. It may raise an `UnsuitableError`, and changes nothing.
        notes: What a plan should say besides, a sentence each.
        buffers: Values of buffers that belong to the values of parameters, by name: the running
            statistics of loaded norm layers.
    """

    initializer: Initializer
    calibrate_: Calibrator | None = None
    on_top: Callable[[Initializer], Initializer] | None = None
    prepare: Callable[[nn.Module, Architecture], Strategy] | None = None
    notes: tuple[str, ...] = ()
    buffers: Mapping[str, Tensor] = {}
    on_calibration: Callable[[Calibrator], Calibrator] | None = None

    def prepared(self, model: nn.Module, architecture: Architecture) -> Strategy:
        """The strategy for one model.

        Raises:
            UnsuitableError: If it cannot serve the model.
        """
        return self if self.prepare is None else self.prepare(model, architecture)

    def scaled(self, factor: float) -> Strategy:
        """The same with every std multiplied by `factor`."""
        on_top, prepare = self.on_top, self.prepare
        return self._replace(
            initializer=Scaled(self.initializer, factor),
            on_top=on_top and (lambda below: Scaled(on_top(below), factor)),
            prepare=prepare and (lambda model, seen: prepare(model, seen).scaled(factor)),
        )


SCALE = Parameter("scale", float, 1.0, Range(1e-3, 1e3, log=True, search=(0.25, 4.0)))


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered strategy.

    Attributes:
        name: Its name in YAML, Python and on the command line.
        function: The decorated function.
        parameters: Its arguments by name; every strategy has `scale`, a factor on std.
        aliases: Other names of the same strategy.
        search: Whether the default search space includes it.
        needs: Facts without which it cannot serve a model, of `needs.NEEDS`.
        wants: Facts without which it serves, but not as its authors mean it: the plan says so.
        nearest: The scheme that an error recommends where this one cannot serve.
        cost: Forward and backward passes, in words.
    """

    name: str
    function: StrategyFunction
    parameters: Mapping[str, Parameter]
    aliases: tuple[str, ...] = ()
    search: bool = True
    needs: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    nearest: str = "auto"
    cost: str = "none"

    @property
    def needs_batch(self) -> bool:
        """Whether it runs the model on data."""
        return not {"batch", "loss"}.isdisjoint(self.needs)

    @property
    def summary(self) -> str:
        """First sentence of the docstring."""
        text = " ".join((inspect.getdoc(self.function) or "").split("\n\n")[0].split())
        return text.removesuffix(".")

    @property
    def references(self) -> str:
        """The docstring's references, on one line."""
        _, _, rest = (inspect.getdoc(self.function) or "").partition("References:\n")
        return " ".join(rest.split("\n\n")[0].split())

    def check(self, params: Mapping[str, object]) -> dict[str, Any]:
        """The given parameters, validated and converted.

        Raises:
            ValueError: If a name is unknown or a value is not legal.
        """
        for name in params:
            if name not in self.parameters:
                raise ValueError(f"{self.name}: {unknown('parameter', name, self.parameters)}")
        return {k: self.parameters[k].check(value, self.name) for k, value in params.items()}

    def build(self, params: Mapping[str, object]) -> Strategy:
        """The strategy with the given parameters."""
        values = self.check(params)
        own = inspect.signature(self.function).parameters
        scale = 1.0 if "scale" in own else values.pop("scale", 1.0)
        made = self.function(**values)
        made = made if scale == 1 else made.scaled(scale)
        return self._checked(made) if self.needs or self.wants else made

    def _checked(self, made: Strategy) -> Strategy:
        """The strategy, which first looks whether it can serve a model."""

        def prepare(model: nn.Module, architecture: Architecture) -> Strategy:
            nearest = get(self.nearest)
            while not holds(nearest.needs, architecture):
                nearest = get(nearest.nearest)
            check_needs(self.name, self.needs, architecture, nearest.name)
            notes = check_wants(self.name, self.wants, architecture)
            ready = made.prepared(model, architecture)
            return ready._replace(notes=(*notes, *ready.notes), prepare=None)

        return made._replace(prepare=prepare)


_REGISTRY: dict[str, Entry] = {}
_ALIASES: dict[str, str] = {}


@overload
def strategy(function: F, /) -> F: ...
@overload
def strategy(
    *,
    aliases: tuple[str, ...] = (),
    search: bool = True,
    needs: tuple[str, ...] = (),
    wants: tuple[str, ...] = (),
    nearest: str = "auto",
    cost: str = "none",
) -> Callable[[F], F]: ...
def strategy(
    function: F | None = None,
    /,
    *,
    aliases: tuple[str, ...] = (),
    search: bool = True,
    needs: tuple[str, ...] = (),
    wants: tuple[str, ...] = (),
    nearest: str = "auto",
    cost: str = "none",
) -> F | Callable[[F], F]:
    """Register a function that returns a `Strategy` under its own name.

    Args:
        function: Its arguments need defaults, and annotations that are `float`, `int`, `bool` or
            `str` (in `Annotated[..., Range(...)]` where a range applies) or a `Literal` of strings.
        aliases: Other names.
        search: Whether the default search space includes it.
        needs: Facts without which it cannot serve a model: `forward`, `batch`, `labels`,
            `branches`, `attention`, ... (`lightning_init.strategies.needs.NEEDS`). A model that
            lacks one gets an error that names it.
        wants: Such facts that it can do without: the plan says what is missing.
        nearest: The scheme that the error recommends.
        cost: Forward and backward passes, in words.

    Returns:
        The function itself.

    Raises:
        TypeError: If an argument has no default or an annotation that YAML cannot hold.
        ValueError: If the name is taken by another function, or a need is unknown.

    Example:
        >>> from typing import Annotated
        >>> from lightning_init import Range, Strategy, strategy
        >>> from lightning_init.strategies.initializers import keep
        >>> @strategy(search=False)
        ... def my_scheme(gain: Annotated[float, Range(0.5, 2.0)] = 1.0) -> Strategy:
        ...     "Does nothing yet."
        ...     return Strategy(keep)
        >>> get("my_scheme").summary
        'Does nothing yet'
        >>> del _REGISTRY["my_scheme"]
    """
    for fact in (*needs, *wants):
        if fact not in NEEDS:
            raise ValueError(unknown("need", fact, NEEDS))

    def register(function: F) -> F:
        name = function.__name__
        entry = Entry(
            name,
            function,
            {"scale": SCALE, **parameters_of(function)},
            aliases,
            search,
            needs,
            wants,
            nearest,
            cost,
        )
        for key in (name, *aliases):
            known = _REGISTRY.get(_ALIASES.get(key, key))
            if known and _identity(known.function) != _identity(function):
                raise ValueError(
                    f"a strategy called {key!r} exists already, in {known.function.__module__}: "
                    "give yours another name"
                )
        _REGISTRY[name] = entry
        _ALIASES.update(dict.fromkeys(aliases, name))
        return function

    return register if function is None else register(function)


def entries() -> tuple[Entry, ...]:
    """All registered strategies: ours by family, as in `BUILT_IN`, then those of plugins."""
    load_plugins()

    def place(entry: Entry) -> tuple[int, int]:
        package, _, family = entry.function.__module__.rpartition(".")
        if package != __package__ or family not in BUILT_IN:
            return len(BUILT_IN), 0
        return BUILT_IN.index(family), entry.function.__code__.co_firstlineno

    return tuple(sorted(_REGISTRY.values(), key=place))


def get(name: str) -> Entry:
    """The strategy of that name or alias.

    Raises:
        ValueError: If there is none; the closest names come first.

    Example:
        >>> get("he_normal") is get("kaiming_normal")
        True
    """
    load_plugins()
    key = _ALIASES.get(name, name)
    if key not in _REGISTRY:
        raise ValueError(unknown("strategy", name, [*_REGISTRY, *_ALIASES]))
    return _REGISTRY[key]


@cache
def load_plugins() -> None:
    """Import the built-in families, then the modules that installed packages name."""
    for family in BUILT_IN:
        import_module(f"lightning_init.strategies.{family}")
    for point in entry_points(group="lightning_init.plugins"):
        point.load()


def _identity(function: StrategyFunction) -> tuple[str, str]:
    # A module that is loaded again (a notebook cell, a reload) replaces its own entries.
    return function.__module__, function.__qualname__
