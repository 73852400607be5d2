"""Paired comparison over seeds: is it better than the baseline, by how much, how sure?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy import stats

Mode = Literal["min", "max"]
FEW = 2  # pairs whose spread says next to nothing


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
        chance: Probability that the mean gain is above zero, given the pairs: Student's t with a
            flat prior, NaN below two pairs.
        pairs: Seeds on which both have a metric.
    """

    n: int
    failures: int
    mean: float
    sd: float
    gain: float
    low: float
    high: float
    wins: float
    chance: float = math.nan
    pairs: int = 0

    @property
    def worse(self) -> bool:
        """Whether the interval lies below no gain; without one, whether the gain does."""
        return (self.gain if math.isnan(self.high) else self.high) < 0

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

    The standard deviation of differences that are not all 0 counts as no less than half of the
    smallest step between the metrics, as those of a rounded metric are equal by chance; of two pairs
    as no less than that of the runs themselves, pooled; if that is 0, there is no interval.

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
    known = done(candidate)
    sign = -1.0 if mode == "min" else 1.0
    pairs = [
        (one, two)
        for one, two in zip(candidate, baseline, strict=True)
        if one is not None and two is not None
    ]
    gains = [sign * (one - two) for one, two in pairs]
    gain = _mean(gains)
    margin = chance = math.nan
    sd = _sd(gains)
    if len(gains) == FEW:  # two that happen to be equal are no sign of little noise
        each = [_sd([pair[side] for pair in pairs]) for side in (0, 1)]
        sd = max(sd, math.hypot(*each) / math.sqrt(2))
        sd = math.nan if sd == 0 != gain else sd
    elif any(gains):
        sd = max(sd, _step([value for pair in pairs for value in pair]) / 2)
    if len(gains) > 1 and not math.isnan(sd):
        spread = sd / math.sqrt(len(gains))
        margin = float(stats.t.ppf((1 + level) / 2, len(gains) - 1)) * spread
        chance = _chance(gain, spread, len(gains) - 1)
    ties = sum(g == 0 for g in gains) / 2
    return Comparison(
        n=len(known),
        failures=len(candidate) - len(known),
        mean=_mean(known),
        sd=_sd(known),
        gain=gain,
        low=gain - margin,
        high=gain + margin,
        wins=(sum(g > 0 for g in gains) + ties) / len(gains) if gains else math.nan,
        chance=chance,
        pairs=len(gains),
    )


def pairs_for(found: Comparison, level: float) -> int | None:
    """How many pairs would show a gain as large as this one, if the noise stays what it is.

    The smallest n with `t(level, n - 1) * sd / sqrt(n) <= 0.75 * gain`: the gain that was seen is
    rather too large than too small where it is the largest of several.

    Args:
        found: A gain whose interval does not exclude zero.
        level: Of the interval.

    Returns:
        None if there is no gain, no interval, or if more than eight times the pairs are needed.

    Example:
        >>> found = compare([1.0, 1.4, 1.9, 1.2, 2.0], [2.0, 2.1, 1.8, 2.0, 2.1], level=0.99)
        >>> found.better(0), pairs_for(found, 0.99)
        (False, 15)
    """
    margin = found.gain - found.low
    if not (found.gain > 0 and margin > found.gain):
        return None

    def quantile(pairs: int) -> float:
        return float(stats.t.ppf((1 + level) / 2, pairs - 1)) / math.sqrt(pairs)

    sd = margin / quantile(found.pairs)
    more = range(found.pairs + 1, 8 * found.pairs + 1)
    return next((n for n in more if quantile(n) * sd <= 0.75 * found.gain), None)


def most_failures(failures: int, runs: int, level: float = 0.95) -> float:
    """The largest rate of failures that what was seen does not exclude (Clopper-Pearson).

    Args:
        failures: How many runs failed.
        runs: Of how many, at least 1.
        level: Confidence of the one-sided bound.

    References:
        Clopper, Pearson (1934), https://doi.org/10.1093/biomet/26.4.404

    Example:
        >>> round(most_failures(0, 5), 2), round(most_failures(0, 100), 2)
        (0.45, 0.03)
    """
    if failures == runs:
        return 1.0
    return float(stats.beta.ppf(level, failures + 1, runs - failures))


def rarer(failed: Sequence[bool], baseline: Sequence[bool]) -> float:
    """Probability that failures are rarer than the baseline's, given those on the same seeds.

    Only seeds on which one of both fails tell them apart; a flat prior for whose failure that is.

    Args:
        failed: Whether each run failed.
        baseline: The baseline's, in the same order of seeds.

    References:
        McNemar (1947), https://doi.org/10.1007/BF02295996

    Example:
        >>> rarer([False] * 5, [True, True, True, True, False]), rarer([True], [True])
        (0.96875, 0.5)
    """
    only = [one for one, other in zip(failed, baseline, strict=True) if one != other]
    return float(stats.beta.sf(0.5, len(only) - sum(only) + 1, sum(only) + 1))


def chances_of_best(
    table: Sequence[Sequence[float | None]], mode: Mode = "min", draws: int = 4000
) -> list[float]:
    """How probably each candidate has the best mean: the seeds drawn again and again (bootstrap).

    Args:
        table: One row per candidate, one metric per seed, None where a run failed; whoever failed on
            a drawn seed is not the best in that draw.
        mode: Whether smaller or larger is better.
        draws: How often; they are the same at every call.

    Returns:
        One share per candidate, which sum to 1; ties are shared. All 0 if there is no metric.

    References:
        Efron (1979), Bootstrap methods, https://doi.org/10.1214/aos/1176344552

    Example:
        >>> chances_of_best([[1.0, 1.2, 1.1], [2.0, 2.1, 2.2]])
        [1.0, 0.0]
    """
    sign = 1.0 if mode == "min" else -1.0
    values = np.array([[np.inf if v is None else sign * v for v in row] for row in table])
    if not np.isfinite(values).any():
        return [0.0] * len(table)
    chosen = np.random.default_rng(0).integers(values.shape[1], size=(draws, values.shape[1]))
    means = values[:, chosen].mean(axis=2)
    best = means.min(axis=0)
    won = (means == best) & np.isfinite(best)
    shares = np.divide(won, won.sum(axis=0), out=np.zeros(won.shape), where=won.any(axis=0))
    counted = np.isfinite(best).sum()
    return [float(share) for share in shares.sum(axis=1) / max(1, counted)]


def _chance(gain: float, spread: float, freedom: int) -> float:
    if spread == 0:
        return 0.5 if gain == 0 else float(gain > 0)
    return float(stats.t.cdf(gain / spread, freedom))


def _step(values: Sequence[float]) -> float:
    """The smallest difference between two values, but for errors of float32; 0 if all are equal."""
    steps = (
        after - before
        for before, after in pairwise(sorted(values))
        if not math.isclose(before, after, rel_tol=1e-6)
    )
    return min(steps, default=0.0)


def done(values: Sequence[float | None]) -> list[float]:
    """The metrics of the runs that have one."""
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _sd(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    # `dist` scales: a loss of 1e200 has a square that is no number.
    return math.dist(values, [_mean(values)] * len(values)) / math.sqrt(len(values) - 1)
