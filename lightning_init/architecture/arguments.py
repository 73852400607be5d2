"""Arguments of registered functions: legal values, conversion, and errors that say what is legal.

A strategy's or detector's signature is its schema. `Range` in an annotation is validation and
search space at once; `parameters_of` reads a signature; `unknown` phrases what was mistyped.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class Range:
    """Legal values of a number, `low <= value <= high`; also what the search suggests.

    Args:
        low: Smallest legal value.
        high: Largest legal value.
        log: Whether the search samples its logarithm.
        search: A narrower interval for the search, None for the whole range.
    """

    low: float
    high: float
    log: bool = False
    search: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.low <= self.high or (self.log and not self.low > 0):
            raise ValueError(f"`low <= high` (and `low > 0` if log) must hold, but got {self}")


@dataclass(frozen=True, slots=True)
class Converted:
    """In an annotation: how a value of YAML becomes one of the argument.

    Args:
        convert: From what was given to the value; a ValueError says what is legal.
        says: What is legal, in words.
    """

    convert: Callable[[object], Any]
    says: str


UNSEARCHED = "unsearched"  # in an annotation: the search leaves the argument at its default


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a strategy: its type, default and legal values."""

    name: str
    kind: type
    default: Any
    range: Range | None = None
    choices: tuple[str, ...] = ()
    converted: Converted | None = None
    searched: bool = True

    @property
    def legal(self) -> str:
        """What is legal, in a few words."""
        if self.converted:
            return self.converted.says
        if self.choices:
            return "|".join(self.choices)
        if self.range:
            return f"{self.range.low:g}..{self.range.high:g}"
        return "text" if self.kind is str else self.kind.__name__

    def check(self, value: object, owner: str) -> Any:
        """The value, converted to the argument's type.

        Raises:
            ValueError: If it is not legal; the text says what is.
        """
        where = f"{owner}: parameter {self.name!r}"
        if self.converted:
            try:
                return self.converted.convert(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{where} must be {self.converted.says}: {error}") from None
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"{where}: {unknown('value', str(value), self.choices)}")
            return value
        if self.kind is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{where} must be true or false, but got {value!r}")
            return value
        if self.kind is str:
            if not isinstance(value, str):
                raise ValueError(f"{where} must be a text, but got {value!r}")
            return value
        number = math.nan
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                number = float(value)  # YAML 1.1 reads 1e-3 as a string
            except (ValueError, OverflowError):
                number = math.nan
        if not math.isfinite(number) or (self.kind is int and number != int(number)):
            raise ValueError(f"{where} must be {_a(self.kind)}, but got {value!r}")
        if self.range and not self.range.low <= number <= self.range.high:
            raise ValueError(
                f"{where}: `{self.range.low:g} <= {self.name} <= {self.range.high:g}` must hold, "
                f"but got {self.name}={number:g}"
            )
        return self.kind(number)


def unknown(kind: str, name: str, legal: Iterable[str]) -> str:
    """An error text: what is unknown, what is legal, closest match first.

    Example:
        >>> unknown("mode", "fanin", ["fan_out", "fan_in"])
        "unknown mode 'fanin': did you mean 'fan_in'? Legal are fan_in, fan_out"
    """
    names = list(dict.fromkeys(legal))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    rest = sorted(set(names) - set(close))
    return f"unknown {kind} {name!r}: {hint}Legal are {', '.join([*close, *rest]) or 'none'}"


def parameters_of(function: Callable[..., object], skip: int = 0) -> dict[str, Parameter]:
    """The arguments of a registered function, read from its signature.

    Args:
        function: Its arguments need defaults and annotations that YAML can hold.
        skip: Leading arguments that are not the user's.

    Raises:
        TypeError: If an argument has no default or another annotation.
    """
    hints = get_type_hints(function, include_extras=True)
    found = {}
    for name, argument in list(inspect.signature(function).parameters.items())[skip:]:
        if argument.default is inspect.Parameter.empty:
            raise TypeError(f"{function.__name__}: argument {name!r} needs a default")
        hint, limits, converted, searched = hints[name], None, None, True
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            limits = next((extra for extra in extras if isinstance(extra, Range)), None)
            converted = next((extra for extra in extras if isinstance(extra, Converted)), None)
            searched = UNSEARCHED not in extras
        choices = cast("tuple[str, ...]", get_args(hint)) if get_origin(hint) is Literal else ()
        kind = str if choices else hint
        if kind not in (float, int, bool, str) and not converted:
            raise TypeError(
                f"{function.__name__}: argument {name!r} must be float, int, bool, str or a "
                f"Literal of strings, but is {hint}"
            )
        found[name] = Parameter(name, kind, argument.default, limits, choices, converted, searched)
    return found


def _a(kind: type) -> str:
    return {int: "a whole number", float: "a finite number"}.get(kind, kind.__name__)
