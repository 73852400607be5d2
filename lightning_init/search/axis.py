"""One dimension of a search: an interval or a list of choices, as a value, as text, as plain data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna

from lightning_init.architecture.arguments import unknown

_KEYS = ("low", "high", "log", "whole", "choices", "current")
_PLAIN = (str, int, float, bool, type(None))
_FORMS = "KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=a,b,c"


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension: an interval or a list of choices, and the value that the user has now.

    Args:
        low: Smallest value.
        high: Largest value.
        log: Whether the logarithm is sampled.
        choices: Instead of an interval: texts, numbers, true, false, None.
        current: The value of the recipes, None for the middle of the interval or the first choice.
        whole: Whether values are whole numbers.

    Raises:
        ValueError: If the interval is empty or a logarithmic one is not positive.

    Example:
        >>> Axis(0.001, 0.1, log=True).start
        0.01
    """

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Any, ...] = ()
    current: Any = None
    whole: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.choices, str) or not isinstance(self.choices, (tuple, list)):
            raise ValueError(f"choices must be a tuple of values, but got {self.choices!r}")
        object.__setattr__(self, "choices", tuple(self.choices))
        for choice in self.choices:
            if not isinstance(choice, _PLAIN):
                raise ValueError(
                    f"a choice must be a text, a number, true, false or null, but got {choice!r}"
                )
        if self.choices:
            return
        got = f"but got low={self.low}, high={self.high}, log={self.log}"
        finite = math.isfinite(self.high - self.low)
        if not (self.low < self.high and finite) or (self.log and self.low <= 0):
            raise ValueError(f"finite `low < high` (and `low > 0` if log) must hold, {got}")
        if self.whole and not (self.low == int(self.low) and self.high == int(self.high)):
            raise ValueError(f"whole numbers go from a whole number to a whole number, {got}")

    @property
    def start(self) -> Any:
        """The value that recipes use."""
        if self.current is not None:
            return self.current
        if self.choices:
            return self.choices[0]
        middle = (self.low * self.high) ** 0.5 if self.log else (self.low + self.high) / 2
        return round(middle) if self.whole else middle

    @property
    def distribution(self) -> optuna.distributions.BaseDistribution:
        """The same for Optuna."""
        if self.choices:
            return optuna.distributions.CategoricalDistribution(self.choices)
        if self.whole:
            low, high = int(self.low), int(self.high)
            return optuna.distributions.IntDistribution(low, high, log=self.log)
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether a value lies on it.

        Example:
            >>> Axis(0.1, 1.0).holds(0.5), Axis(choices=(1, 2)).holds(True)
            (True, False)
        """
        if self.choices:
            return any(type(one) is type(value) and one == value for one in self.choices)
        fits = _is_number(value) and self.low <= value <= self.high
        return fits and not (self.whole and value != int(value))

    def at(self, value: Any) -> Axis:
        """The same that starts at the user's own value, widened if it lies outside.

        Args:
            value: What the configuration has now.

        Returns:
            The axis; its recipes begin where the user is.

        Raises:
            ValueError: If the axis cannot hold the value: none or 0 on a logarithmic one.

        Example:
            >>> Axis(0.001, 0.1, log=True).at(0.5).high
            0.5
        """
        if self.choices:
            same = [one for one in self.choices if type(one) is type(value) and one == value]
            others = [one for one in self.choices if not any(one is each for each in same)]
            return replace(self, choices=(value, *others), current=value)
        if (
            not _is_number(value)
            or (self.log and value <= 0)
            or (self.whole and value != int(value))
        ):
            raise ValueError(f"{self} cannot hold {value!r}")
        low, high = min(self.low, value), max(self.high, value)
        return replace(self, low=low, high=high, current=value)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, only what differs from the defaults; `from_dict` reads it.

        Example:
            >>> Axis(0.001, 0.1, log=True).to_dict()
            {'low': 0.001, 'high': 0.1, 'log': True}
        """
        data: dict[str, Any] = (
            {"choices": list(self.choices)}
            if self.choices
            else {"low": self.low, "high": self.high}
        )
        data.update({key: True for key in ("log", "whole") if getattr(self, key)})
        return data if self.current is None else {**data, "current": self.current}

    @classmethod
    def from_dict(cls, data: object) -> Axis:
        """The axis in plain data.

        Args:
            data: `[low, high]`, `[a, b, c]` (choices, unless it is two numbers), or a mapping with
                low, high, log and whole, or with choices; each may have current.

        Raises:
            ValueError: If it has none of these forms.

        Example:
            >>> Axis.from_dict([1, 8]) == Axis(1, 8, whole=True)
            True
            >>> Axis.from_dict(["tanh", "relu"]).choices
            ('tanh', 'relu')
        """
        if isinstance(data, (list, tuple)) and data:
            numbers = [read(item) for item in data]
            if len(data) == 2 and all(_is_number(number) for number in numbers):
                return _interval(numbers[0], numbers[1], log=False)
            return cls(choices=tuple(data))
        if not isinstance(data, Mapping):
            raise ValueError(f"an axis is [low, high], [a, b, c] or a mapping, but got {data!r}")
        for key in data:
            if key not in _KEYS:
                raise ValueError(unknown("key of an axis", str(key), _KEYS))
        current = data.get("current")
        if "choices" in data:
            if not data["choices"]:
                raise ValueError(f"choices must not be empty, but got {dict(data)!r}")
            return cls(choices=data["choices"], current=current)
        low, high = read(data.get("low")), read(data.get("high"))
        if not _is_number(low) or not _is_number(high):
            raise ValueError(f"an interval needs the numbers low and high, but got {dict(data)!r}")
        log, whole = data.get("log", False), data.get("whole", False)
        if not isinstance(log, bool) or not isinstance(whole, bool):
            raise ValueError(f"log and whole must be true or false, but got {dict(data)!r}")
        return cls(float(low), float(high), log, (), read(current), whole)

    def __str__(self) -> str:
        if self.choices:
            return ",".join("null" if one is None else str(one) for one in self.choices)
        return f"{self.low:.3g}..{self.high:.3g}{' log' if self.log else ''}"


def parse_axis(text: str, option: str = "--axis") -> tuple[str, Axis]:
    """An axis from `KEY=LOW:HIGH[:log]` or `KEY=a,b,c`.

    Whole numbers, numbers, true, false and null are read as such unless they stand in quotes,
    which also hold a comma or a colon.

    Args:
        text: What the user typed.
        option: How the error calls it.

    Raises:
        ValueError: If the text has neither form.

    Example:
        >>> parse_axis("model.init_args.width=32,64")[1].choices
        (32, 64)
        >>> parse_axis("model.init_args.act='a,b',null,true")[1].choices
        ('a,b', None, True)
    """
    key, _, rest = text.partition("=")
    try:
        return key, (_axis(rest) if key else _axis(""))
    except ValueError as error:
        detail = f" ({error})" if str(error) else ""
        raise ValueError(f"{option} must be {_FORMS}, but got {text!r}{detail}") from None


def around(value: float) -> Axis:
    """A learning rate's axis: a tenth to ten times the user's own, logarithmic."""
    return Axis(value / 10, value * 10, log=True, current=value)


def read(value: Any) -> Any:
    """A text as the number, truth value or null that it spells; anything else as it is.

    Example:
        >>> read("1e-3"), read("32"), read("null"), read("tanh"), read(True)
        (0.001, 32, None, 'tanh', True)
    """
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return {"true": True, "false": False, "null": None}.get(value.strip().lower(), value)


def _axis(text: str) -> Axis:
    parts = re.findall(r"""'[^']*'|"[^"]*"|[^,:'"]+|[,:]""", text)
    if "".join(parts) != text or not all(part not in (",", ":") for part in parts[::2]):
        raise ValueError
    if len(parts) % 2 == 0 or not all(part in (",", ":") for part in parts[1::2]):
        raise ValueError
    values = [part[1:-1] if part[0] in "'\"" else read(part) for part in parts[::2]]
    if ":" not in parts:
        return Axis(choices=tuple(values))
    if "," in parts or len(values) > 3 or values[2:] not in ([], ["log"]):
        raise ValueError
    low, high = values[:2]
    if not _is_number(low) or not _is_number(high):
        raise ValueError
    return _interval(low, high, log=len(values) == 3)


def _interval(low: float, high: float, *, log: bool) -> Axis:
    whole = isinstance(low, int) and isinstance(high, int)
    return Axis(float(low), float(high), log=log, whole=whole)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
