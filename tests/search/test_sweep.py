"""Learning rates: which are tried, what counts already, and what is as good as the best."""

import math
from collections import Counter

import numpy as np
import pytest

from lightning_init import Axis, InitSpec, search_init
from lightning_init.search.space import Space, around
from lightning_init.search.sweep import best_rate, grid, tolerant
from lightning_init.search.trial import Outcome
from tests.search.fakes import LR, Recorded, noise

SPACE = Space(("orthogonal", "normal"), {LR: around(0.01)})


def find(evaluate, space=SPACE, **arguments):
    wanted = {"trials": 12, "steps": 20, "confirm_seeds": 3, "lr_key": LR}
    return search_init(evaluate, space, **{**wanted, **arguments})


def test_the_grid_is_even_and_holds_what_it_must():
    axis = Axis(0.001, 0.1, log=True)
    assert grid(axis, [0.01]) == pytest.approx(np.geomspace(0.001, 0.1, 5), rel=1e-3)
    assert grid(axis, [0.01, 0.001]) == grid(axis, [0.01])
    with_two = grid(axis, [0.01, 0.07])
    assert {0.001, 0.01, 0.07, 0.1} <= set(with_two)
    assert len(with_two) == 5
    assert len(grid(axis, [0.01, 0.02, 0.03, 0.04])) == 6
    assert grid(Axis(0.0, 1.0), [0.5]) == [0, 0.25, 0.5, 0.75, 1]
    assert grid(Axis(choices=(0.1, 0.01), current=0.1), [0.1]) == [0.01, 0.1]


RATES = ((0.001, None), (0.003, 0.5), (0.01, 0.4), (0.03, 0.419), (0.1, 0.41), (0.3, 2.0))


def test_the_range_around_the_best():
    assert best_rate(RATES, "min") == 0.01
    assert tolerant(RATES, "min") == (0.01, 0.1)
    assert tolerant(RATES, "min", 0.3) == (0.003, 0.1)
    assert tolerant(RATES, "min", 0.04) == (0.01, 0.01), "beyond a worse one none counts"
    assert tolerant(RATES, "max") == (0.3, 0.3)
    higher = tuple((rate, value and -value) for rate, value in RATES)
    assert tolerant(higher, "max") == (0.01, 0.1), "5 % of the size, whatever the sign"
    assert tolerant(((0.1, None),), "min") is None
    assert best_rate(((0.1, None),), "min") is None
    assert tolerant(((0.1, 0.0), (0.2, 0.0), (0.3, 0.1)), "min") == (0.1, 0.2)


def bowl(best):
    """Each init has its own best learning rate and a depth."""

    def evaluate(trial, report):
        centre, depth = best[trial.spec.strategy]
        far = abs(math.log10(trial.config[LR] / centre))
        return Outcome(1.0 + far - depth + 0.001 * noise(trial))

    return evaluate


def test_keep_and_the_finalists_are_run_at_five_rates_once(tmp_path):
    evaluate = Recorded(
        tmp_path,
        bowl({"keep": (0.1, 0), "auto": (0.01, 0), "orthogonal": (0.01, 0.5), "normal": (0.01, 0)}),
    )
    fixed = (InitSpec("orthogonal"), InitSpec("normal"))
    result = find(evaluate, Space(fixed, {LR: around(0.01)}))
    calls = [call[:3] for call in evaluate.calls]
    assert max(Counter(call for call in calls if call[2] == 0).values()) == 1
    kept = {rate for name, rate, seed in calls if name == "keep" and seed == 0}
    assert kept >= {0.001, 0.003162, 0.01, 0.03162, 0.1}
    assert [rate for rate, _ in result.rates["keep"]] == sorted(kept)
    for label, rates in result.rates.items():
        assert len(rates) >= 5, label
        assert [rate for rate, _ in rates] == sorted(rate for rate, _ in rates)
        assert {0.001, 0.01, 0.1} <= {rate for rate, _ in rates}


def test_keep_at_its_own_best_rate_is_confirmed_beside_keep():
    result = find(
        bowl({"keep": (0.1, 0), "auto": (0.01, 0), "orthogonal": (0.01, 0.5), "normal": (0.01, 0)})
    )
    [tuned] = [one for one in result.candidates if one.kind == "tuned"]
    assert tuned.spec == InitSpec("keep")
    assert tuned.config == {LR: 0.1}
    assert result.baseline.config == {LR: 0.01}
    assert len(tuned.runs) == len(result.baseline.runs) == 3
    assert (
        "tuned" not in [one.kind for one in (result.baseline, result.best)] or tuned is result.best
    )


def test_keep_that_is_best_at_the_users_rate_has_no_double():
    result = find(
        bowl({"keep": (0.01, 0), "auto": (0.01, 0), "orthogonal": (0.01, 1), "normal": (0.01, 0)})
    )
    assert [one.kind for one in result.candidates] == ["finalist"] * 3
    assert result.decision.rate is None


def test_a_finalist_moves_to_its_own_best_rate():
    result = find(
        bowl({"keep": (0.01, 0), "auto": (0.01, 0), "orthogonal": (0.1, 0.9), "normal": (0.01, 0)}),
        trials=4,
    )
    moved = [one for one in result.candidates if one.spec.strategy == "orthogonal"]
    assert [one.config for one in moved] == [{LR: 0.1}]


def test_without_a_learning_rate_there_is_no_sweep(tmp_path):
    said = []
    evaluate = Recorded(
        tmp_path, bowl(dict.fromkeys(("keep", "auto", "orthogonal", "normal"), (0.01, 0)))
    )
    result = find(evaluate, lr_key="", progress=said.append)
    assert result.rates == {}
    assert "sweep" not in {state.phase for state in said}
    assert len(evaluate.calls) == 12 + 4 * 3


def test_a_sweep_that_was_cut_off_goes_on(tmp_path):
    evaluate = Recorded(
        tmp_path, bowl(dict.fromkeys(("keep", "auto", "orthogonal", "normal"), (0.02, 0)))
    )
    one = find(evaluate, storage=tmp_path / "j")
    calls = evaluate.calls
    two = find(evaluate, storage=tmp_path / "j")
    assert evaluate.calls == calls
    assert two.to_dict() == one.to_dict()


def test_rates_at_which_nothing_trains_are_kept_as_failures():
    def evaluate(trial, report):
        if trial.config[LR] > 0.05:
            return Outcome(None, reason="exploded")
        return Outcome(1.0 + trial.config[LR])

    result = find(evaluate)
    assert dict(result.rates["keep"])[0.1] is None
    assert "learning rates within 5 % of the best: keep 0.001 to" in "\n".join(result.lines())


@pytest.mark.parametrize(("share", "rate"), [(0.009, 0.003162), (0.011, 0.01)])
def test_of_rates_that_are_alike_the_lowest_is_taken(share, rate):
    def evaluate(trial, report):
        metric = {"keep": 2.0, "orthogonal": 1.0}.get(trial.spec.strategy, 3.0)
        lr = trial.config[LR]
        steps = {0.001: 3.0, 0.003162: 1 + share, 0.01: 1.0, 0.03162: 3.0, 0.1: 3.0}
        return Outcome(metric * steps.get(lr, 3.0) + trial.seed * 1e-3)

    result = find(evaluate, Space((InitSpec("orthogonal"),), {LR: around(0.01)}), trials=3)
    [moved] = [one for one in result.candidates if one.spec.strategy == "orthogonal"]
    assert moved.config == {LR: rate}
    tuned = [one.config for one in result.candidates if one.kind == "tuned"]
    assert tuned == ([{LR: rate}] if rate != 0.01 else [])


def test_a_rate_between_those_of_a_grid_is_not_an_init_s_gain():
    alike = bowl(dict.fromkeys(("keep", "auto", "orthogonal", "normal"), (1.0, 0)))
    space = Space(("orthogonal", "normal"), {LR: Axis(0.01, 10.0, log=True)})
    assert 1.0 not in grid(space.config[LR], [])
    result = find(alike, space)
    finalists = [one.config[LR] for one in result.candidates if one.kind == "finalist"]
    assert 1.0 in finalists
    assert set(finalists) <= {rate for rate, _ in result.rates["keep"]}
    assert result.best.is_baseline or result.best.kind == "tuned"
