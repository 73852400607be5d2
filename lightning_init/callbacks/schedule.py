"""Which steps of a watch are read layer by layer."""

from __future__ import annotations


def sampled(step: int, monitor_steps: int) -> bool:
    """Whether a step is read layer by layer: 0, 1, 2, 5, 10, 20, 50, 100, ... and the last one.

    Example:
        >>> [step for step in range(30) if sampled(step, 30)]
        [0, 1, 2, 5, 10, 20, 29]
    """
    if not 0 <= step < monitor_steps:
        return False
    leading = step // 10 ** (len(str(step)) - 1)
    round_number = step == leading * 10 ** (len(str(step)) - 1) and leading in (0, 1, 2, 5)
    return round_number or step == monitor_steps - 1
