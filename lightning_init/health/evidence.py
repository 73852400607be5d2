"""What the readings say about causes: each suspect with its numbers, the strongest first.

A symptom has usual causes; which of them is the likeliest this time, the readings tell. Every
detector ranks its causes here, so that data with a standard deviation of 70 are named first
whatever they brought about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from lightning_init.architecture.readings import Readings
from lightning_init.health.findings import Cause

# A cause, and how strongly the readings speak for it: e-folds beyond what is usual.
Suspicion = tuple[float, Cause]


def ranked(readings: Readings, *usual: Cause, without: tuple[str, ...] = ()) -> tuple[Cause, ...]:
    """Causes of a symptom: those that the readings speak for, the strongest first, then the usual.

    Args:
        readings: What was measured.
        usual: The usual causes of the symptom, the likeliest first.
        without: Names of suspects that cannot cause it.

    Example:
        >>> lr = Cause("learning rate", "usually too high", "lower it")
        >>> [cause.name for cause in ranked(Readings(), lr)]
        ['learning rate']
    """
    suspects = sorted(
        (s for s in suspicions(readings) if s[1].name not in without),
        key=lambda suspicion: -suspicion[0],
    )
    named = {cause.name: cause for _, cause in reversed(suspects)}
    first = list(dict.fromkeys(cause.name for _, cause in suspects))
    rest = [cause for cause in usual if cause.name not in named]
    return (*(named[name] for name in first), *rest)


def suspicions(readings: Readings) -> Iterator[Suspicion]:
    """All that the readings speak for."""
    for look in _LOOKS:
        yield from look(readings)


def _data_scale(readings: Readings) -> Iterator[Suspicion]:
    for reading in readings.steps[:1]:
        for one in reading.inputs:
            if one.finite and not one.normalized and one.rms > 5:
                text = f"the inputs of {one.name} have mean {one.mean:.3g} and std {one.std:.3g}"
                remedy = "scale the data to mean 0 and std 1, or put a norm layer first"
                yield math.log(one.rms), Cause("data scale", text, remedy)
                return


_LOOKS: tuple[Callable[[Readings], Iterator[Suspicion]], ...] = (_data_scale,)
