"""Trials that train too slowly end early; a slow starter, keep and auto do not."""

import math

import optuna
import pytest

from lightning_init import search_init
from lightning_init.search.pruner import SlowPruner
from lightning_init.search.space import Space, around
from lightning_init.search.trial import Outcome
from tests.search.fakes import LR

STEPS = 100
AT = range(5, STEPS + 1, 5)


def trained(losses, reason=""):
    return optuna.create_trial(value=0.0, intermediate_values=losses, user_attrs={"reason": reason})


def falling(rate, start=2.0):
    return {step: start * math.exp(-rate * step / STEPS) for step in AT}


def stopped_at(pruner, losses):
    """The first step at which a trial with these losses is slow."""
    for step in AT:
        if pruner.slow({s: v for s, v in losses.items() if s <= step}):
            return step
    return None


def filled(rates):
    return SlowPruner(STEPS, [trained(falling(rate)) for rate in rates])


def test_slow_is_behind_the_median_of_the_others_by_a_quarter_of_the_steps():
    pruner = filled([1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.5, 3.0])
    assert stopped_at(pruner, falling(1.45)) == 40, "at 40 it is where they were before 30"
    assert stopped_at(pruner, falling(1.6)) is None, "at step 100 it is where they were at 80"
    assert stopped_at(pruner, falling(3.0)) is None


def test_it_agrees_with_optunas_median_where_it_looks():
    rates = [0.5, 1.0, 1.1, 1.2, 1.9, 2.1, 2.3, 2.6, 2.9, 3.0, 3.3]
    pruner = filled(rates)
    theirs = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0)
    study = optuna.create_study(direction="minimize")
    for rate in rates:
        study.add_trial(trained(falling(rate)))
    for rate in (0.4, 1.0, 1.5, 1.6, 1.7, 2.2):
        losses = falling(rate)
        shifted = {75: losses[100]}
        running = optuna.create_trial(
            state=optuna.trial.TrialState.RUNNING, intermediate_values=shifted
        )
        assert pruner.slow(losses) == theirs.prune(study, running)


def test_none_is_ended_before_ten_others_and_a_quarter_of_the_steps():
    nine = filled([2.0] * 9)
    assert stopped_at(nine, falling(0.0)) is None
    nine.learn(trained(falling(2.0)))
    assert stopped_at(nine, falling(0.0)) == 25


def test_a_slow_starter_is_not_lost():
    pruner = filled([2.0] * 12)
    late = {step: 2.0 if step < 25 else 2.0 * math.exp(-8 * (step - 20) / STEPS) for step in AT}
    assert late[20] > falling(2.0)[15]
    assert stopped_at(pruner, late) is None


def test_an_unhealthy_trial_is_no_measure_but_a_slow_one_is():
    pruner = filled([2.0] * 9)
    pruner.learn(trained(falling(9.0), "activations vanish"))
    assert stopped_at(pruner, falling(0.0)) is None, "still nine"
    pruner.learn(trained({5: 1.9}, "pruned: slower than half of the others at step 5"))
    assert stopped_at(pruner, falling(0.0)) == 25


def test_losses_at_steps_that_nobody_else_reported_end_nothing():
    pruner = filled([2.0] * 12)
    odd = {step + 1: 2.0 for step in AT}
    assert not pruner.slow(odd)


NAMES = ("orthogonal", "normal", "uniform", "xavier_normal", "xavier_uniform", "lecun_normal")
SPACE = Space(NAMES, {LR: around(0.01)})


class Course:
    """Trains as fast as its learning rate is near 0.01; counts the steps it was let do."""

    def __init__(self, mode="min", listens=True, slow=()):
        self.mode, self.listens, self.slow = mode, listens, slow
        self.steps = []

    def __call__(self, trial, report):
        far = abs(math.log10(trial.config[LR]) + 2)
        rate = 0.1 if trial.spec.strategy in self.slow else 4.0 * max(0.0, 1 - 1.5 * far)
        curve = []
        for step in range(5, trial.steps + 1, 5):
            curve.append((step, 2.0 * math.exp(-rate * step / trial.steps)))
            if report(*curve[-1]) and self.listens:
                break
        self.steps.append((trial.spec.strategy, trial.seed, step))
        if step < trial.steps:
            return Outcome(None, tuple(curve), "pruned")
        return Outcome(curve[-1][1] if self.mode == "min" else -curve[-1][1], tuple(curve))


def find(evaluate, **arguments):
    wanted = {"trials": 40, "steps": STEPS, "confirm_seeds": 2, "lr_key": ""}
    return search_init(evaluate, SPACE, **{**wanted, **arguments})


def slow_ones(result):
    return [t for t in result.study.trials if t.user_attrs["reason"].startswith("pruned")]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_steps_are_saved_and_the_winner_is_the_same(mode):
    plain, careful = Course(mode), Course(mode)
    without = find(plain, mode=mode, pruning=False)
    result = find(careful, mode=mode)
    ended = slow_ones(result)
    assert len(ended) >= 3
    for trial in ended:
        assert trial.state.name == "PRUNED"
        last = max(trial.intermediate_values)
        assert last < STEPS
        assert trial.user_attrs["reason"] == (
            f"pruned: slower than half of the others at step {last}"
        )
        assert trial.user_attrs["metric"] is None
        assert not trial.constraints
    screened = sum(steps for _, seed, steps in careful.steps if seed == 0)
    assert screened < 0.95 * 40 * STEPS
    assert screened == sum(max(t.intermediate_values) for t in result.study.trials)
    assert {one.number for one in result.candidates}.isdisjoint(t.number for t in ended)
    assert not slow_ones(without)
    found = [abs(math.log10(r.candidates[0].config[LR]) + 2) for r in (without, result)]
    assert max(found) < 0.1


def test_keep_and_auto_are_never_ended():
    course = Course(slow=("keep", "auto"))
    result = find(course)
    assert slow_ones(result)
    assert not {t.number for t in slow_ones(result)} & {0, 1}, "as they are"
    assert all(steps == STEPS for name, _, steps in course.steps if name == "keep")


def test_one_that_does_not_listen_and_runs_to_its_end_counts():
    result = find(Course(listens=False))
    assert not slow_ones(result)
    assert {row["state"] for row in result.trials} == {"COMPLETE"}


def test_a_gp_is_told_the_middle_of_the_worse_half():
    result = find(Course(), sampler="gp", trials=24)
    ended = slow_ones(result)
    assert ended
    for trial in ended:
        assert trial.state.name == "COMPLETE"
        assert trial.constraints == {"health": -1.0}, "feasible"
        before = sorted(
            t.value
            for t in result.study.trials
            if t.number < trial.number and not t.user_attrs["reason"]
        )
        assert before[len(before) // 2] <= trial.value <= before[-1]
    assert not {one.number for one in result.candidates} & {t.number for t in ended}


def test_several_goals_prune_nothing():
    def evaluate(trial, report):
        stopped = [report(step, 9.0 * trial.config[LR]) for step in range(5, STEPS + 1, 5)]
        assert not any(stopped)
        return Outcome(trial.config[LR], others=(-trial.config[LR],))

    result = find(evaluate, monitor=["a", "b"])
    assert not slow_ones(result)


def test_a_search_that_goes_on_knows_the_others(tmp_path):
    find(Course(), storage=tmp_path / "j", trials=15)
    course = Course()
    find(course, storage=tmp_path / "j", trials=40)
    assert any(steps < STEPS for _, seed, steps in course.steps[:3] if seed == 0) or slow_ones(
        find(Course(), storage=tmp_path / "j", trials=40)
    )


def test_an_unhealthy_trial_that_was_also_slow_is_unhealthy():
    def evaluate(trial, report):
        loss = 4.0 if trial.spec.strategy in ("normal", "uniform") else 1.0
        stop = False
        for step in range(5, STEPS + 1, 5):
            stop = report(step, loss / step) or stop
        return Outcome(None, reason="dead units") if stop else Outcome(loss)

    result = find(evaluate, trials=40, seed=3)
    dead = [t for t in result.study.trials if t.user_attrs["reason"]]
    assert dead
    for trial in dead:
        assert trial.user_attrs["reason"] == "dead units"
        assert trial.constraints == {"health": 1.0}
