"""Which candidate is recommended, and whose the gain is: the init's or the learning rate's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_init.search.budget import Goal
from lightning_init.search.candidates import Candidate
from lightning_init.search.statistics import Comparison, compare, rarer

LIKELY = 0.9  # chance of being better that is worth telling


@dataclass(frozen=True, slots=True)
class Decision:
    """What is recommended and why.

    Attributes:
        best: The recommended candidate; the baseline if nothing beats it by more than the noise.
        beaten: The candidate with the best mean that beats the baseline, None if none does; it is
            not recommended where the baseline's init does as well at another learning rate.
        rate: The gain of `keep` at its own best learning rate over `keep`, None if `keep`'s own
            learning rate is its best or was not searched.
        init: The gain of `beaten` over `keep` at its own best learning rate, None without that.
        shown: Whether `init` excludes no gain.
    """

    best: Candidate
    beaten: Candidate | None = None
    rate: Comparison | None = None
    init: Comparison | None = None
    shown: bool = False


def against(
    one: Candidate, other: Candidate, goals: Sequence[Goal], level: float
) -> tuple[Comparison, ...]:
    """A candidate against another, goal by goal."""
    return tuple(
        compare(one.values(index), other.values(index), goal.mode, level)
        for index, goal in enumerate(goals)
    )


def level_for(candidates: int, goals: int) -> float:
    """The intervals' level, so that all together are wrong in at most 5 % (Bonferroni)."""
    return 1 - 0.05 / max(1, candidates * goals)


def decide(
    baseline: Candidate,
    candidates: Sequence[Candidate],
    goals: Sequence[Goal],
    rate_key: str = "",
) -> Decision:
    """Recommend a candidate that beats the baseline by more than the noise, else the baseline.

    With one goal that is a paired gain whose interval excludes zero, and no more failures. With
    several, one such gain at least, and no goal that is worse by more than the noise. Where the
    winner has another learning rate than the baseline, but is not shown to be better than the
    baseline's init at its own best learning rate, and that beats the baseline, the latter is
    recommended: the gain is the learning rate's. What that init does as well on average is never
    recommended, however small the noise happens to be.

    Args:
        baseline: The as-built model.
        candidates: Whom to choose from, in the order of preference.
        goals: What each value is.
        rate_key: The configuration key that is the learning rate.
    """
    level = level_for(len(candidates), len(goals))

    def beats(one: Candidate, other: Candidate) -> bool:
        failures = sum(value is None for value in other.metrics)
        found = against(one, other, goals, level)
        better = any(each.better(failures) for each in found)
        # Nothing worse is recommended: the stricter test is the narrower interval.
        return better and not any(each.worse for each in against(one, other, goals, 0.95))

    tuned = next((one for one in candidates if one.kind == "tuned"), None)

    def only_rate(one: Candidate) -> bool:
        """Whether the baseline's init does as well on average at another learning rate."""
        if (
            tuned is None
            or one is tuned
            or one.config.get(rate_key) == baseline.config.get(rate_key)
        ):
            return False
        return all(each.gain <= 0 for each in against(one, tuned, goals, level))

    winners = [one for one in candidates if beats(one, baseline) and not only_rate(one)]
    if not winners:
        return Decision(baseline)
    best = beaten = winners[0]
    if tuned is None:
        return Decision(best, beaten)
    [rate, *_] = against(tuned, baseline, goals, level)
    if beaten is tuned:
        return Decision(best, beaten, rate)
    [init, *_] = against(beaten, tuned, goals, level)
    shown = beats(beaten, tuned)
    other_rate = beaten.config.get(rate_key) != baseline.config.get(rate_key)
    if other_rate and not shown and tuned in winners:
        best = tuned
    return Decision(best, beaten, rate, init, shown)


def preference(
    one: Candidate, found: Sequence[Comparison], goals: Sequence[Goal]
) -> tuple[float, ...]:
    """Sorts candidates: fewest failures, then most goals gained, then the best first goal."""
    gained = 0 if len(goals) == 1 else -sum(each.low > 0 for each in found)
    mean = found[0].mean
    sign = 1 if goals[0].mode == "min" else -1
    failures = sum(value is None for value in one.metrics)
    return failures, gained, math.inf if math.isnan(mean) else sign * mean


def steadier(
    baseline: Candidate, candidates: Sequence[Candidate], comparisons: Sequence[Comparison]
) -> str:
    """Who probably fails less often than the baseline, where no gain is shown; `""` if nobody."""
    lost = [value is None for value in baseline.metrics]
    for one, found in zip(candidates, comparisons, strict=True):
        theirs = [value is None for value in one.metrics]
        if not found.high < 0 and rarer(theirs, lost) >= LIKELY:
            return (
                f"undecided: {baseline.label} failed on {sum(lost)} of {len(lost)} seeds, "
                f"{one.label} on {sum(theirs)}, but the pairs that are left ({found.pairs}) show no "
                "gain beyond the noise; best.yaml is keep, as you have it, not a recommendation"
            )
    return ""
