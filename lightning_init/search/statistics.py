"""Paired comparison over seeds: is it better than the baseline, by how much, how sure?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

Mode = Literal["min", "max"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One candidate against the baseline on the same seeds.

    Attributes:
        n: Seeds on which the candidate has a metric.
        failures: Seeds on which it has none.
        mean: Mean metric, NaN if there is none.
        sd: Standard deviation over seeds, NaN below two.
        gain: Mean paired improvement over the baseline; positive is better whatever the mode.
        low: Lower end of the gain's confidence interval.
        high: Upper end.
        wins: Share of pairs in which the candidate is better; ties count half.
    """

    n: int
    failures: int
    mean: float
    sd: float
    gain: float
    low: float
    high: float
    wins: float

    def better(self, baseline_failures: int) -> bool:
        """Whether the interval excludes no gain, and the candidate fails no more often.

        A candidate that never fails is better than a baseline that always does.
        """
        if self.failures > baseline_failures or self.n == 0:
            return False
        if math.isnan(self.gain):
            return self.failures == 0
        return self.low > 0


def compare(
    candidate: Sequence[float | None],
    baseline: Sequence[float | None],
    mode: Mode = "min",
    level: float = 0.95,
) -> Comparison:
    """Compare paired metrics, None where a run failed.

    Args:
        candidate: One metric per seed.
        baseline: The baseline's, in the same order of seeds.
        mode: Whether smaller or larger is better.
        level: Confidence of the two-sided t interval, above 0, below 1.

    Returns:
        The comparison.

    References:
        Student (1908), The probable error of a mean; Bouthillier et al. (2021),
        https://arxiv.org/abs/2103.03098 (pairing, probability of outperforming).

    Example:
        >>> result = compare([1.0, 1.1, 0.9], [2.0, 2.2, 2.1])
        >>> round(result.gain, 2), result.better(0)
        (1.1, True)
    """
    done = [value for value in candidate if value is not None]
    sign = -1.0 if mode == "min" else 1.0
    gains = [
        sign * (one - two)
        for one, two in zip(candidate, baseline, strict=True)
        if one is not None and two is not None
    ]
    gain = _mean(gains)
    margin = math.nan
    if len(gains) > 1:
        spread = _sd(gains) / math.sqrt(len(gains))
        margin = float(stats.t.ppf((1 + level) / 2, len(gains) - 1)) * spread
    ties = sum(g == 0 for g in gains) / 2
    return Comparison(
        n=len(done),
        failures=len(candidate) - len(done),
        mean=_mean(done),
        sd=_sd(done),
        gain=gain,
        low=gain - margin,
        high=gain + margin,
        wins=(sum(g > 0 for g in gains) + ties) / len(gains) if gains else math.nan,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _sd(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
