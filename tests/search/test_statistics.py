"""Paired comparison: against scipy, and calibrated under repeated simulation."""

import math
from itertools import product

import numpy as np
import optuna
import pytest
from scipy import stats

from lightning_init import InitSpec
from lightning_init.search.budget import Goal
from lightning_init.search.candidates import Candidate, Run
from lightning_init.search.result import SearchResult
from lightning_init.search.stability import stability
from lightning_init.search.statistics import (
    chances_of_best,
    compare,
    most_failures,
    pairs_for,
)

RNG = np.random.default_rng(0)
ONE, TWO = RNG.normal(1.0, 0.2, 7).tolist(), RNG.normal(1.1, 0.2, 7).tolist()


@pytest.mark.parametrize("level", [0.9, 0.95, 1 - 0.05 / 3])
def test_the_interval_is_students(level):
    found = compare(ONE, TWO, "min", level)
    test = stats.ttest_rel(TWO, ONE)
    interval = test.confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    differences = np.subtract(TWO, ONE)
    single = stats.ttest_1samp(differences, 0).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((single.low, single.high), rel=1e-12)
    assert found.gain == pytest.approx(differences.mean(), rel=1e-12)
    assert found.mean == pytest.approx(np.mean(ONE), rel=1e-12)
    assert found.sd == pytest.approx(np.std(ONE, ddof=1), rel=1e-12)


@pytest.mark.parametrize("shift", [0.3, 0.31, 0.32, 0.33, 0.34, 0.35])
def test_better_agrees_with_the_one_sided_test(shift):
    noise = np.array([-0.3, 0.1, 0.2, -0.1, 0.3])
    candidate = (1 - shift * 0.8 - noise).tolist()
    p = stats.ttest_rel([1.0] * 5, candidate, alternative="greater").pvalue
    assert compare(candidate, [1.0] * 5).better(0) == (p < 0.025)


def test_pairing_removes_what_seeds_share():
    hard = [0.0, 5.0, 10.0, 15.0]
    slightly_better = [value - 0.1 + 0.01 * (i % 2) for i, value in enumerate(hard)]
    assert compare(slightly_better, hard).better(0)
    assert not compare([*slightly_better[1:], slightly_better[0]], hard).better(0)


def test_gain_is_positive_when_better_in_either_mode():
    low, high = [1.0, 1.1, 0.9], [2.0, 2.2, 2.1]
    down, up = compare(low, high, "min"), compare(high, low, "max")
    assert down.gain == up.gain == pytest.approx(1.1)
    assert (down.low, down.high, down.wins) == (up.low, up.high, up.wins)
    worse = compare(low, high, "max")
    assert worse.gain == -down.gain
    assert (worse.low, worse.high) == (-down.high, -down.low)
    assert down.better(0)
    assert not worse.better(0)


def test_ties_count_half_and_equal_runs_are_not_better():
    assert compare([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 5.0]).wins == 0.625
    same = compare(ONE, ONE)
    assert (same.gain, same.low, same.high, same.wins) == (0, 0, 0, 0.5)
    assert not same.better(0)


def test_a_failed_candidate_run_is_counted_and_not_paired():
    found = compare([1.0, None, 1.2, 1.1], [2.0, 2.0, 2.3, 2.1])
    assert (found.n, found.failures, found.pairs) == (3, 1, 3)
    assert found.mean == pytest.approx(1.1)
    assert found.gain == pytest.approx(3.1 / 3)
    assert found.low > 0
    assert not found.better(0), "it fails more often than the baseline"
    assert found.better(1)


def test_a_failed_baseline_run_is_not_paired():
    found = compare([1.0, 9.0, 1.2], [2.0, None, 2.3])
    assert (found.n, found.failures) == (3, 0)
    assert found.gain == pytest.approx(1.05)
    assert found.mean == pytest.approx(11.2 / 3)


def test_a_baseline_that_always_fails_loses_only_to_one_that_never_does():
    never = compare([1.0, 2.0], [None, None])
    assert math.isnan(never.gain)
    assert math.isnan(never.wins)
    assert never.better(2)
    assert not compare([1.0, None], [None, None]).better(2)


def test_nothing_beats_nothing():
    both = compare([None, None], [None, None])
    assert (both.n, both.failures) == (0, 2)
    assert math.isnan(both.mean)
    assert not both.better(2)
    disjoint = compare([1.0, None], [None, 1.0])
    assert math.isnan(disjoint.gain)
    assert not disjoint.better(1)


def test_one_seed_is_never_enough():
    found = compare([1.0], [100.0])
    assert found.gain == 99
    assert math.isnan(found.low)
    assert math.isnan(found.sd)
    assert not found.better(0)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        compare([1.0], [1.0, 2.0])


def simulated(delta: float, seeds: int, times: int = 4000) -> int:
    shared = RNG.normal(size=(times, seeds))  # what a seed does to both
    baseline = shared + RNG.normal(size=(times, seeds))
    candidate = shared + RNG.normal(size=(times, seeds)) - delta
    pairs = zip(candidate.tolist(), baseline.tolist(), strict=True)
    return sum(compare(one, two).better(0) for one, two in pairs)


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_a_planted_zero_is_called_better_at_the_nominal_rate(seeds):
    low, high = stats.binom.interval(0.9999, 4000, 0.025)
    found = simulated(0.0, seeds)
    assert found <= high
    assert found >= low or seeds == 2, "two pairs are judged more strictly"


def test_a_planted_difference_is_found():
    assert simulated(5.0, 5, 500) > 0.95 * 500
    power = stats.nct.sf(stats.t.ppf(0.975, 4), 4, 2.0 / math.sqrt(2 / 5))
    low, high = stats.binom.interval(0.9999, 4000, power)
    assert low <= simulated(2.0, 5) <= high


def candidate(number: int, metrics: list[float | None], baseline: bool = False) -> Candidate:
    runs = tuple(Run(seed, metric, "", (), {}) for seed, metric in enumerate(metrics, start=1))
    spec = InitSpec("keep" if baseline else "orthogonal")
    return Candidate(number, spec, {}, runs, "keep" if baseline else "finalist")


def judge(baseline, *others, mode="min") -> SearchResult:
    everyone = [candidate(number, metrics) for number, metrics in enumerate(others, start=1)]
    return SearchResult.judge(
        candidate(0, baseline, True),
        tuple(everyone),
        (),
        goals=(Goal("m", mode),),
        steps=1,
        study=optuna.create_study(),
    )


def test_the_judge_widens_for_the_number_of_candidates():
    keep, one = [1.0] * 5, [1 - x for x in (0.02, 0.30, 0.10, 0.25, 0.18)]
    bad = [2.0, 2.1, 2.2, 2.0, 2.1]
    p = stats.ttest_rel(keep, one, alternative="greater").pvalue
    assert 0.025 / 3 < p < 0.025, "between the two verdicts"
    alone, among = judge(keep, one), judge(keep, bad, one, bad)
    assert alone.best.number == 1
    assert among.best.is_baseline
    for count, result in ((1, alone), (3, among)):
        interval = stats.ttest_rel(keep, one).confidence_interval(1 - 0.05 / count)
        assert result.comparisons[0].low == pytest.approx(interval.low, rel=1e-12)


def test_the_judge_is_right_about_noise_in_the_family():
    times, wrong = 1500, 0
    for _ in range(times):
        keep, *others = RNG.normal(size=(4, 5)).tolist()
        wrong += not judge(keep, *others).best.is_baseline
    # At most 3 x 0.025/3; less, as all three share one baseline.
    assert wrong <= stats.binom.ppf(0.9999, times, 0.025)
    assert wrong >= stats.binom.ppf(0.0001, times, 0.025 / 3)


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_the_best_mean_wins_and_fewer_failures_come_first(mode, sign):
    keep = [sign * x for x in (5.0, 5.1, 4.9)]
    good = [sign * x for x in (2.0, 2.1, 1.9)]
    better = [sign * x for x in (1.0, 1.1, 0.9)]
    flaky = [sign * 0.1, sign * 0.1, None]
    result = judge(keep, good, flaky, better, mode=mode)
    assert [one.number for one in result.candidates] == [3, 1, 2]
    assert result.best.number == 3
    assert result.suggestion() == InitSpec("orthogonal")
    assert [row[4] for row in result.rows()] == ["0", "0", "1 of 3", "0"]


def test_the_chance_of_being_better_is_students():
    found = compare(ONE, TWO)
    p = stats.ttest_rel(TWO, ONE, alternative="greater").pvalue
    assert found.chance == pytest.approx(1 - p, rel=1e-12)
    assert compare(TWO, ONE).chance == pytest.approx(p, rel=1e-9)
    assert compare(ONE, ONE).chance == 0.5
    assert math.isnan(compare([1.0], [2.0]).chance)


def half_a_step(step: float, pairs: int, level: float = 0.95) -> float:
    """How far an interval reaches at least."""
    low, high = stats.t.interval(level, pairs - 1, scale=step / 2 / math.sqrt(pairs))
    return (high - low) / 2


def test_differences_that_are_equal_by_rounding_are_not_certain():
    for worse, better in (([1.0] * 3, [2.0] * 3), ([0.8] * 3, [np.float32(0.9).item()] * 3)):
        found, step = compare(better, worse, "max"), better[0] - worse[0]
        assert found.low == pytest.approx(step - half_a_step(step, 3), rel=1e-9)
        assert found.chance == pytest.approx(stats.t.cdf(2 * math.sqrt(3), 2), rel=1e-9)
        assert not found.better(0)
        assert not compare(worse, better, "max").better(0)
    # Equal to within float32, and on a grid: accuracies of ten samples.
    one, two = [0.7, 0.8, 0.9], [0.6, 0.7000000001, 0.8]
    assert compare(one, two, "max").low == pytest.approx(0.1 - half_a_step(0.1, 3), rel=1e-6)
    assert compare([0.7] * 5, [0.6] * 5, "max").better(0), "five times the same are enough"
    wide = compare([1.0] * 5, [0.1] * 5, "max", 1 - 0.05 / 3)
    assert wide.low == pytest.approx(0.9 - half_a_step(0.9, 5, 1 - 0.05 / 3), rel=1e-9)
    assert wide.low > 0
    same = compare([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same.low, same.high, same.chance) == (0, 0, 0.5), "what is compared with itself"


@pytest.mark.parametrize("seeds", [3, 4])
def test_rounded_metrics_do_not_win_by_being_equal(seeds):
    """At the level of three candidates, accuracies of five samples."""
    times, level = 6000, 1 - 0.05 / 3
    one, two = RNG.binomial(5, 0.8, size=(2, times, seeds)) / 5
    equal = sum(len(set(np.round(a - b, 6))) == 1 for a, b in zip(one, two, strict=True))
    found = sum(
        compare(a, b, "max", level).better(0)
        for a, b in zip(one.tolist(), two.tolist(), strict=True)
    )
    assert found <= stats.binom.ppf(0.999, times, 0.025 / 3)
    assert equal > 0.002 * times


def test_two_equal_differences_decide_nothing():
    found = compare([1.0, 1.0], [2.0, 2.0])
    assert (found.gain, found.pairs) == (1.0, 2)
    assert math.isnan(found.low)
    assert math.isnan(found.chance)
    assert not found.better(0)
    assert compare([2.0, 2.0], [1.0, 1.0]).worse, "nothing that looks worse is recommended"
    found = compare([1.0, 1.5], [2.0, 2.5])
    half = stats.t.ppf(0.975, 1) * math.sqrt(0.125) / math.sqrt(2)  # the runs' own deviation
    assert found.low == pytest.approx(1.0 - half)
    assert not found.better(0)
    assert compare([1.0, 1.01], [2.0, 2.01]).better(0), "a hundred times what seeds do"
    same = compare([1.0, 1.0], [1.0, 1.0])
    assert (same.low, same.high, same.better(0), same.worse) == (0, 0, False, False)


def test_rounded_metrics_of_two_seeds_are_called_better_no_more_often_than_agreed():
    """Accuracies of few samples: differences are equal by chance all the time."""
    times = 4000
    one = RNG.binomial(10, 0.7, size=(times, 2)) / 10
    two = RNG.binomial(10, 0.7, size=(times, 2)) / 10
    equal = sum(a[0] - b[0] == pytest.approx(a[1] - b[1]) for a, b in zip(one, two, strict=True))
    found = sum(
        compare(a, b, "max").better(0) for a, b in zip(one.tolist(), two.tolist(), strict=True)
    )
    assert equal > 0.1 * times
    assert found <= stats.binom.ppf(0.9999, times, 0.025)


@pytest.mark.parametrize(("failures", "runs"), [(0, 5), (0, 1), (1, 8), (5, 5)])
def test_the_most_failures_that_are_not_excluded(failures, runs):
    """Oracle: SciPy's exact interval."""
    exact = stats.binomtest(failures, runs, alternative="less").proportion_ci(0.95)
    assert most_failures(failures, runs) == pytest.approx(exact.high)
    assert most_failures(0, 5) == pytest.approx(1 - 0.05 ** (1 / 5))


def test_the_chance_of_being_the_best():
    assert chances_of_best([[1.0, 1.0], [1.0, 1.0]]) == [0.5, 0.5]
    assert chances_of_best([[1.0, 3.0], [2.0, 2.0]], "max") == pytest.approx([0.5, 0.5], abs=0.03)
    assert chances_of_best([[1.0, None], [2.0, 2.0]]) == pytest.approx([0.25, 0.75], abs=0.03)
    assert chances_of_best([[None], [None]]) == [0.0, 0.0]
    rows = RNG.normal(size=(3, 4))
    shares = chances_of_best(rows.tolist())
    assert sum(shares) == pytest.approx(1)
    every = [rows[:, list(chosen)].mean(axis=1).argmin() for chosen in product(range(4), repeat=4)]
    exact = np.bincount(every, minlength=3) / len(every)
    assert shares == pytest.approx(exact.tolist(), abs=0.03)


def test_the_order_at_two_horizons():
    names = ["a", "b", "c", "d"]
    early = [[1.0, 1.1], [2.0, 2.1], [3.0, 3.1], [4.0, 4.1]]
    swapped = [early[1], early[0], early[2], early[3]]
    same = stability(names, early, early, (50, 150))
    assert (same.tau, same.text) == (1.0, "ranks at 50 and 150 steps agree (tau 1)")
    turned = stability(names, early, early[::-1], (50, 150))
    assert turned.tau == -1
    assert turned.text == (
        "ranks at 50 and 150 steps disagree (tau -1): at 50 steps a led, at 150 d: use longer "
        "--steps"
    )
    found = stability(names, early, swapped, (50, 150))
    assert found.tau == pytest.approx(stats.kendalltau([1, 2, 3, 4], [2, 1, 3, 4]).statistic)
    noisy = stability(names[:2], [[1.0, 1.2], [1.1, 1.3]], [[1.0, 3.0], [2.0, 1.5]], (5, 9))
    assert "differ within the noise" in noisy.text
    assert stability(["a"], [[1.0]], [[1.0]], (5, 9)) is None
    assert stability(names[:2], [[None], [1.0]], [[1.0], [1.0]], (5, 9)) is None
    level = stability(names[:2], [[1.0], [1.0]], [[2.0], [3.0]], (5, 9))
    assert level.tau is None
    assert stability(names, early, early, (5, 9), "max").tau == 1


def test_metrics_whose_squares_are_no_numbers_have_a_spread():
    assert compare([1e200, 3e200], [2e200, 2e200]).sd == pytest.approx(2**0.5 * 1e200)


def test_pairs_for_is_the_least_that_shows_three_quarters_of_the_gain():
    gains = np.array([0.8, 0.1, 0.5, 0.9, -0.2])
    found = compare(list(2.0 - gains), [2.0] * 5, level=0.99)
    wanted = pairs_for(found, 0.99)
    assert wanted is not None
    assert not found.better(0)

    def low(
        pairs: int,
    ) -> float:  # of the interval for as much noise and three quarters of the gain
        error = gains.std(ddof=1) / np.sqrt(pairs)
        return 0.75 * gains.mean() - stats.t.interval(0.99, pairs - 1)[1] * error

    assert low(wanted) >= 0 > low(wanted - 1)


@pytest.mark.parametrize(
    "gains", [[-0.1, 0.2, -0.3], [1.0, 1.1, 1.2], [0.1, -0.9, 1.0, -0.1], [1.0]]
)
def test_no_more_pairs_where_they_are_not_needed_or_too_many(gains):
    found = compare([2.0 - gain for gain in gains], [2.0] * len(gains))
    assert pairs_for(found, 0.95) is None
