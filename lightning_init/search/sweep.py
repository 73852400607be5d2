"""At which learning rates do `keep` and the best few work? Short runs on the screening's seed.

It tells how sensitive each is, gives `keep` the learning rate that suits it, so that a gain of the
learning rate is not taken for one of the init, and each finalist its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import optuna

from lightning_init.search.budget import Budget
from lightning_init.search.candidates import Candidate, label
from lightning_init.search.finalists import as_built, finalists, rated, tried, without_rate
from lightning_init.search.runs import Runs, key_of
from lightning_init.search.space import Axis, Space
from lightning_init.search.statistics import Mode
from lightning_init.search.trial import Trial
from lightning_init.strategies.spec import InitSpec

RATES = 5  # per init
_ALIKE = 0.01  # of the metric: over one seed nobody can tell
Rates = tuple[tuple[float, float | None], ...]


class Sweep(Runs):
    """Five learning rates for each finalist, and all of these for `keep`; none without such an axis.

    Args:
        study: The screening; its trials of the same init count.
        budget: Which key is the learning rate, on which seed.
        space: What was searched.
        stored: What has been run.
    """

    def __init__(
        self, study: optuna.Study, budget: Budget, space: Space, stored: optuna.Study
    ) -> None:
        self._budget, self._space = budget, space
        self._keep = as_built(study, space)
        self._finalists = finalists(study, budget, space)
        self._tried: dict[str, dict[float, float | None]] = {}
        for one in tried(study, space):
            known = Candidate(-1, one.spec, one.config)
            if rated(budget, space):
                rate = float(one.config[budget.lr_key])
                self._tried.setdefault(without_rate(known, budget, space), {})[rate] = one.metric
        everyone = [self._keep, *self._finalists] if rated(budget, space) else []
        super().__init__("sweep", stored, [t for one in everyone for t in self._missing(one)])

    @property
    def rates(self) -> dict[str, Rates]:
        """Label without the learning rate -> (learning rate, metric or None), in order."""
        return {
            label(one.spec, one.config, without=self._budget.lr_key): self._measured(one)
            for one in ([self._keep, *self._finalists] if rated(self._budget, self._space) else [])
        }

    def candidates(self) -> list[Candidate]:
        """`keep`, `keep` at its best learning rate if that is another, the finalists at theirs."""
        if not rated(self._budget, self._space):
            return [self._keep, *self._finalists]
        found = [self._keep]
        tuned = self._at_best(self._keep)
        if tuned.content != self._keep.content:
            found.append(replace(tuned, number=-1, kind="tuned"))
        # What is best in several goals at once is not moved for the first of them.
        several = len(self._budget.goals) > 1
        return found + [one if several else self._at_best(one) for one in self._finalists]

    def _at_best(self, one: Candidate) -> Candidate:
        """At the lowest of the rates that are as good as the best: the farthest from divergence."""
        span = tolerant(self._measured(one), self._budget.mode, _ALIKE)
        if span is None or span[0] == float(one.config[self._budget.lr_key]):
            return one
        return replace(one, config={**one.config, self._budget.lr_key: span[0]})

    def _measured(self, one: Candidate) -> Rates:
        found = dict(self._tried.get(without_rate(one, self._budget, self._space), {}))
        for trial in self._all(one):
            run = self.known.get(key_of(trial))
            if run is not None:
                found.setdefault(float(trial.config[self._budget.lr_key]), run.metric)
        return tuple(sorted(found.items()))

    def _missing(self, one: Candidate) -> list[Trial]:
        known = self._tried.get(without_rate(one, self._budget, self._space), {})
        return [t for t in self._all(one) if float(t.config[self._budget.lr_key]) not in known]

    def _all(self, one: Candidate) -> list[Trial]:
        key, budget = self._budget.lr_key, self._budget
        # `keep` at the rates of all finalists: else a rate's gain is taken for one of the init.
        alike = [one] if one is not self._keep else [one, *self._finalists]
        own, axis = float(self._keep.config[key]), self._space.config[key]
        wanted = sorted({r for each in alike for r in grid(axis, [own, float(each.config[key])])})
        gated = one.spec not in (InitSpec("keep"), InitSpec("auto"))
        return [
            Trial(one.spec, {**one.config, key: rate}, budget.seed, budget.steps, gated)
            for rate in wanted
        ]


def grid(axis: Axis, included: Sequence[float], count: int = RATES) -> list[float]:
    """Learning rates over an axis: its ends, those included, then the middle of the widest gap.

    Args:
        axis: Positive; of a list of choices, all of them.
        included: Rates that must be among them.
        count: How many in all, as long as more are not included.

    Returns:
        Rates in order.

    Example:
        >>> grid(Axis(0.001, 0.1, log=True), [0.01])
        [0.001, 0.003162, 0.01, 0.03162, 0.1]
    """
    if axis.choices:
        return sorted({float(one) for one in axis.choices} | set(included))
    found = sorted({axis.low, axis.high, *included})
    while len(found) < count:
        pairs = list(pairwise(found))
        gap = [math.log(high / low) if axis.log and low > 0 else high - low for low, high in pairs]
        low, high = pairs[gap.index(max(gap))]
        middle = math.sqrt(low * high) if axis.log and low > 0 else (low + high) / 2
        found = sorted({*found, float(f"{middle:.4g}")})
    return found


def best_rate(rates: Rates, mode: Mode) -> float | None:
    """The learning rate with the best metric, None if all failed."""
    done = [(metric, rate) for rate, metric in rates if metric is not None]
    if not done:
        return None
    pick = min if mode == "min" else max
    best = pick(metric for metric, _ in done)
    return next(rate for metric, rate in done if metric == best)


def tolerant(rates: Rates, mode: Mode, share: float = 0.05) -> tuple[float, float] | None:
    """The range of tested learning rates around the best whose metric is within 5 % of the best.

    The tolerance is `share * |best|`, for a loss as for an accuracy: of a best accuracy of 0.9, 0.855
    and more; of a best loss of 0.2, 0.21 and less. Only tested rates count and none beyond a rate
    that is not within it, so that the true range is at least as wide.

    Args:
        rates: Tested (learning rate, metric or None), in order of the rate.
        mode: Whether a smaller or larger metric is better.
        share: Of the best metric's size.

    Returns:
        The lowest and the highest rate, None if all failed.

    Example:
        >>> tolerant(((0.001, 0.5), (0.01, 0.9), (0.03, 0.88), (0.1, 0.2)), "max")
        (0.01, 0.03)
    """
    top = best_rate(rates, mode)
    if top is None:
        return None
    best = dict(rates)[top]
    assert best is not None
    good = [m is not None and abs(m - best) <= share * abs(best) for _, m in rates]
    first = last = [rate for rate, _ in rates].index(top)
    while first > 0 and good[first - 1]:
        first -= 1
    while last + 1 < len(good) and good[last + 1]:
        last += 1
    return rates[first][0], rates[last][0]


def rates_text(rates: Mapping[str, Rates], mode: Mode, name: str) -> str | None:
    """One init's range of learning rates for people, None if there is none."""
    found = rates.get(name, ())
    span = tolerant(found, mode)
    if span is None:
        return None
    low, high = span
    tested = f"{found[0][0]:.3g} to {found[-1][0]:.3g}"
    lost = sum(metric is None for _, metric in found)
    failed = f", {lost} failed" if lost else ""
    return f"{low:.3g} to {high:.3g} ({len(found)} tested from {tested}{failed})"
