"""Whether the order of candidates after few steps is that after more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy import stats

from lightning_init.search.statistics import Mode, compare, done


@dataclass(frozen=True, slots=True)
class Stability:
    """Whether the order of the candidates is the same after more steps.

    Attributes:
        tau: Kendall's tau between the means at both horizons, None where it is not defined.
        text: The same for people.
    """

    tau: float | None
    text: str


def stability(
    names: Sequence[str],
    early: Sequence[Sequence[float | None]],
    late: Sequence[Sequence[float | None]],
    steps: tuple[int, int],
    mode: Mode = "min",
) -> Stability | None:
    """Compare the order of candidates after few and after more steps.

    Args:
        names: The candidates.
        early: For each, the metric per seed after the few steps.
        late: For each, after more steps, on the same seeds.
        steps: Both numbers of steps.
        mode: Whether smaller or larger is better.

    Returns:
        None if fewer than two candidates have a mean at both.

    References:
        Kendall (1938), A new measure of rank correlation.

    Example:
        >>> stability(["a", "b"], [[1.0, 1.1], [2.0, 2.1]], [[0.5, 0.6], [0.9, 1.1]], (50, 150)).text
        'ranks at 50 and 150 steps agree (tau 1)'
    """
    sign = 1.0 if mode == "min" else -1.0
    rows = [
        (name, sign * fmean(done(one)), sign * fmean(done(two)), two)
        for name, one, two in zip(names, early, late, strict=True)
        if done(one) and done(two)
    ]
    if len(rows) < 2:
        return None
    found = float(stats.kendalltau([row[1] for row in rows], [row[2] for row in rows]).statistic)
    tau = found if math.isfinite(found) else None
    said = "not defined" if tau is None else f"{tau:.2g}"
    first = min(rows, key=lambda row: row[1])
    last = min(rows, key=lambda row: row[2])
    head = f"ranks at {steps[0]} and {steps[1]} steps"
    if first is last:
        agree = "agree" if tau is None or tau >= 0.5 else "agree on the first only"
        return Stability(tau, f"{head} {agree} (tau {said})")
    led = f"at {steps[0]} steps {first[0]} led, at {steps[1]} {last[0]}"
    if compare(last[3], first[3], mode).low > 0:
        return Stability(tau, f"{head} disagree (tau {said}): {led}: use longer --steps")
    return Stability(tau, f"{head} differ within the noise (tau {said}): {led}")
