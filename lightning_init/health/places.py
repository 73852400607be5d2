"""How places are named in a message: the first one, and how many more there are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning_init.architecture.readings import Readings, StepReading, WeightReading

MATRICES = ("weight", "recurrent")


def and_more(names: Sequence[str], what: str = "layer") -> str:
    """The first of several, and how many there are besides.

    Example:
        >>> and_more(["fc1", "fc2", "fc3"])
        'fc1 (and 2 more layers)'
        >>> and_more(["fc1"])
        'fc1'
    """
    more = len(names) - 1
    return f"{names[0]} (and {more} more {what}{'s' * (more > 1)})" if more else names[0]


def masked(name: str) -> str:
    """A name with its numbers masked: the same for the same tensor of every block.

    Example:
        >>> masked("h.11.mlp.down.weight")
        'h.#.mlp.down.weight'
    """
    return re.sub(r"\d+", "#", name)


def masked_once(name: str) -> list[str]:
    """A name with one of its numbers masked, for each of them.

    Example:
        >>> masked_once("h.11.mlp.2.weight")
        ['h.#.mlp.2.weight', 'h.11.mlp.#.weight']
    """
    return [
        f"{name[: number.start()]}#{name[number.end() :]}" for number in re.finditer(r"\d+", name)
    ]


def matrices(reading: StepReading) -> list[WeightReading]:
    """The weights that multiply and that are trained: neither biases, tables nor norms."""
    return [
        weight
        for weight in reading.weights
        if weight.trainable and weight.finite and weight.role in MATRICES
    ]


def scheme_of(readings: Readings, place: str) -> str:
    """What the first matrix at or below a place was drawn from, `""` if that is not known."""
    for weight in readings.steps[0].weights if readings.steps else ():
        inside = weight.module == place or weight.name.startswith(f"{place}.") or not place
        if inside and weight.drawn and weight.role in ("", *MATRICES):
            return weight.drawn
    return ""
