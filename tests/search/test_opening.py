"""The first trials: strategies and learning rates take turns."""

import math

import pytest

from lightning_init import search_init
from lightning_init.search.opening import OPENING
from lightning_init.search.space import STRATEGY, Space, around
from lightning_init.search.trial import Outcome
from tests.search.fakes import LR

SPACE = Space(("orthogonal", "normal", "xavier_normal"), {LR: around(0.01)})


def off(best_rate: float, good: str = "orthogonal"):
    """A metric that is best at one learning rate and with one strategy."""

    def evaluate(trial, report):
        far = abs(math.log10(trial.config[LR] / best_rate))
        return Outcome(1 + far - 0.2 * (trial.spec.strategy == good) + trial.seed * 1e-6)

    return evaluate


def opened(evaluate, trials=20, **more):
    arguments = {"trials": trials, "confirm_seeds": 2, "lr_key": LR, **more}
    found = search_init(evaluate, SPACE, **arguments).study.trials
    return [(t.params[STRATEGY], round(t.params[LR], 5), t.user_attrs.get(OPENING)) for t in found]


def test_keep_and_auto_are_first_at_the_users_rate_then_strategies_and_rates_take_turns():
    found = opened(off(0.01))
    assert found[:3] == [
        ("keep", 0.01, None),
        ("auto", 0.01, None),
        ("orthogonal", 0.01, "recipe"),
    ]
    assert found[3] == ("orthogonal", 0.03162, "probe")
    assert found[4] == ("normal", 0.01, "recipe")
    assert found[5] == ("orthogonal", 0.00316, "probe")
    assert found[6] == ("xavier_normal", 0.01, "recipe")
    assert [kind for *_, kind in found[7:]] == [None] * 13, "then the sampler"


@pytest.mark.parametrize(("rate", "end"), [(0.1, 0.1), (0.001, 0.001)])
def test_where_the_users_rate_is_wrong_the_strategies_are_tried_at_a_better_one(rate, end):
    found = opened(off(rate))
    recipes = {name: lr for name, lr, kind in found if kind == "recipe"}
    assert recipes["orthogonal"] == 0.01
    assert abs(math.log10(recipes["xavier_normal"] / end)) < 0.51
    assert ("orthogonal", end, "probe") in found, "as far as the axis goes, not beyond"
    assert all(0.001 <= lr <= 0.1 for _, lr, _ in found)


def test_with_few_trials_every_strategy_is_tried_first():
    found = opened(off(0.1), trials=7)
    assert [name for name, *_ in found[:5]] == list(SPACE.names)
    assert [kind for *_, kind in found[5:]] == ["probe", "probe"]


def test_without_a_learning_rate_there_are_strategies_only():
    found = opened(off(0.1), lr_key="")
    assert [name for name, *_ in found[:5]] == list(SPACE.names)
    assert {lr for _, lr, _ in found[:5]} == {0.01}
    assert "probe" not in [kind for *_, kind in found]


def test_an_unhealthy_trial_leads_nowhere():
    def evaluate(trial, report):
        high = trial.config[LR] > 0.011
        return Outcome(None, reason="diverged") if high else off(0.1)(trial, report)

    found = opened(evaluate)
    assert [lr for _, lr, kind in found if kind == "recipe"] == [0.01] * 3


def test_what_was_cut_off_is_not_opened_twice(tmp_path):
    whole = opened(off(0.03), storage=tmp_path / "one")
    for trials in (3, 5, 8, 20):
        parts = opened(off(0.03), trials=trials, storage=tmp_path / "two")
    count = {kind: [row for row in parts if row[2] == kind] for kind in ("recipe", "probe")}
    assert sorted(count["recipe"])[0][0] == "normal"
    assert len(count["recipe"]) == len([row for row in whole if row[2] == "recipe"]) == 3
    assert len(count["probe"]) == len(set(count["probe"])) <= 8
