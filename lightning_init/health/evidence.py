"""What the readings say about causes: each suspect with its numbers, the strongest first.

A symptom has usual causes; which of them is the likeliest this time, the readings tell. Every
detector ranks its causes here, so that data with a standard deviation of 70 are named first
whatever they brought about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lightning_init.architecture.readings import Readings
from lightning_init.health import drawn, learning
from lightning_init.health.drawn import Suspicion
from lightning_init.health.findings import Cause


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


_LOOKS: tuple[Callable[[Readings], Iterator[Suspicion]], ...] = (
    *drawn.LOOKS,
    *learning.LOOKS,
)
