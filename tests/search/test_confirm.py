"""Confirmation: longer, on fresh seeds, stored by content; and whose the gain is."""

import math
from collections import Counter

import pytest

from lightning_init import InitSpec, search_init
from lightning_init.search.budget import Goal
from lightning_init.search.candidates import Candidate, Run
from lightning_init.search.decision import decide
from lightning_init.search.space import Space, around
from lightning_init.search.trial import Outcome
from tests.search.fakes import LR, SPACE, Recorded, noise, valley

GOALS = (Goal("loss", "min"),)


def candidate(number, metrics, kind="finalist", lr=0.01, others=None):
    name = {"keep": "keep", "tuned": "keep"}.get(kind, "orthogonal")
    runs = tuple(
        Run(seed, metric, "", (), {}, () if others is None else (others[seed],))
        for seed, metric in enumerate(metrics)
    )
    return Candidate(number, InitSpec(name), {LR: lr}, runs, kind)


KEEP = candidate(0, [1.00, 1.02, 0.98, 1.01, 0.99], "keep")


def shifted(number, by, kind="finalist", lr=0.01, wobble=0.01):
    noisy = [wobble * x for x in (1, -1, 0.5, -0.5, 0.2)]
    return candidate(
        number, [m - by + n for m, n in zip(KEEP.metrics, noisy, strict=True)], kind, lr
    )


def chosen(*candidates, goals=GOALS):
    return decide(KEEP, candidates, goals, LR)


def test_the_inits_gain_is_the_inits():
    winner, tuned = shifted(1, 0.5, lr=0.03), shifted(-1, 0.1, "tuned", 0.03)
    found = chosen(winner, tuned)
    assert found.best is winner
    assert found.shown
    assert found.rate.gain == pytest.approx(0.1, abs=0.01)
    assert found.init.gain == pytest.approx(0.4, abs=0.01)


def test_the_learning_rates_gain_is_the_learning_rates():
    winner, tuned = shifted(1, 0.5, lr=0.03, wobble=-0.02), shifted(-1, 0.495, "tuned", 0.05)
    found = chosen(winner, tuned)
    assert found.beaten is winner
    assert found.best is tuned
    assert not found.shown
    assert found.init.low < 0 < found.init.high


def test_at_the_users_rate_the_init_needs_no_other():
    winner, tuned = shifted(1, 0.5, lr=0.01, wobble=-0.02), shifted(-1, 0.495, "tuned", 0.05)
    found = chosen(winner, tuned)
    assert found.best is winner
    assert not found.shown


def test_what_is_not_clear_stays_with_the_winner():
    winner = shifted(1, 0.5, lr=0.03)
    unclear = shifted(-1, 0.3, "tuned", 0.05, wobble=0.5)
    found = chosen(winner, unclear)
    assert found.best is winner
    assert not found.shown


def test_what_keep_does_as_well_at_another_rate_is_not_the_inits_however_even_the_seeds():
    lucky = shifted(1, 0.3, lr=0.03, wobble=0.0)  # all differences alike: an interval of nothing
    tuned = shifted(-1, 0.36, "tuned", 0.05, wobble=1.0)
    assert tuned.kind == "tuned"
    assert chosen(lucky, tuned).best is KEEP, "neither is shown to be better"
    assert chosen(lucky, shifted(-1, 0.32, "tuned", 0.05, wobble=1.0)).best is lucky


def test_a_tuned_keep_can_win_by_itself():
    tuned = shifted(-1, 0.5, "tuned", 0.05)
    found = chosen(tuned, shifted(1, 0.1))
    assert found.best is tuned
    assert found.init is None


def test_worse_or_failing_more_is_never_recommended():
    assert chosen(shifted(1, -0.5), shifted(-1, 0.0, "tuned", 0.05)).best is KEEP
    flaky = shifted(1, 0.5)
    broken = candidate(1, [*flaky.metrics[:4], None])
    assert chosen(broken).best is KEEP


def test_of_several_goals_one_must_gain_and_none_may_lose():
    goals = (Goal("loss", "min"), Goal("speed", "max"))
    speeds = [10.0, 10.1, 9.9, 10.0, 10.1]
    keep = candidate(0, KEEP.metrics, "keep", others=speeds)
    gain = [m - 0.5 + 0.01 * i for i, m in enumerate(KEEP.metrics)]

    def best(speed, metrics=gain):
        return decide(keep, [candidate(1, metrics, others=speed)], goals, LR).best

    assert best(speeds).number == 1
    assert best([s + 3 + 0.1 * i for i, s in enumerate(speeds)]).number == 1
    assert best([s - 3 + 0.1 * i for i, s in enumerate(speeds)]) is keep, "worse in one"
    assert best(speeds, KEEP.metrics) is keep, "equal in both"
    assert best([s - 0.05 * (-1) ** i for i, s in enumerate(speeds)]).number == 1, "only noise"


def find(evaluate, space=SPACE, **arguments):
    wanted = {"trials": 8, "steps": 20, "confirm_seeds": 3}
    return search_init(evaluate, space, **{**wanted, **arguments})


class Marked:
    """Writes down what trials are asked for; reads the metric at the marks."""

    def __init__(self, turn=False):
        self.trials, self.turn = [], turn

    def __call__(self, trial, report):
        self.trials.append(trial)
        metric = valley(trial, report).metric
        late = 3.0 - metric if self.turn and trial.steps > 20 else metric
        readings = tuple((mark, metric) for mark in trial.marks)
        info = {"distance": 0.5, "gap": 0.1} if trial.measured else {}
        return Outcome(late, info=info, readings=readings)


def test_runs_are_longer_measured_and_read_on_the_way():
    evaluate = Marked()
    result = find(evaluate, confirm_steps=60)
    screened, confirmed = evaluate.trials[:8], evaluate.trials[8:]
    assert {(t.steps, t.marks, t.measured) for t in screened} == {(20, (), False)}
    assert {(t.steps, t.marks, t.measured) for t in confirmed} == {(60, (20,), True)}
    assert result.steps == 60
    assert result.stability.tau == pytest.approx(1.0)
    assert "ranks at 20 and 60 steps agree (tau 1)" in result.lines()
    assert result.baseline.runs[0].reading(20) == result.baseline.runs[0].metric
    said = "\n".join(result.lines())
    assert "distance travelled from init: orthogonal lr=0.01 0.5, keep lr=0.01 0.5" in said
    assert "train/validation gap of the metric: orthogonal lr=0.01 0.1" in said


def test_ranks_that_turn_are_said():
    result = find(Marked(turn=True), confirm_steps=60)
    assert result.stability.tau < 0
    assert "ranks at 20 and 60 steps disagree" in result.stability.text
    assert "use longer --steps" in result.stability.text
    assert find(Marked()).stability is None, "one horizon has no other"


def test_a_longer_horizon_does_not_mix_with_the_shorter(tmp_path):
    evaluate = Recorded(tmp_path)
    arguments = {"storage": tmp_path / "j", "identity": "one"}
    find(evaluate, **arguments)
    before = len(evaluate.calls)
    result = find(evaluate, **arguments, confirm_steps=60)
    assert Counter(call[3] for call in evaluate.calls[before:]) == {60: 12}
    assert {run.steps for one in result.candidates for run in one.runs} == {60}
    calls = evaluate.calls
    assert {run.steps for run in find(evaluate, **arguments).baseline.runs} == {20}
    assert evaluate.calls == calls


def test_other_finalists_use_the_runs_that_are_there(tmp_path):
    evaluate = Recorded(tmp_path)
    arguments = {"storage": tmp_path / "j", "identity": "one"}
    few = find(evaluate, **arguments, trials=6)
    many = find(evaluate, **arguments, trials=25)
    confirmed = Counter(call[:4] for call in evaluate.calls if call[2] > 0)
    before = {one.content: one.metrics for one in few.candidates}
    shared = [one for one in many.candidates if one.content in before]
    assert shared
    for one in shared:
        assert one.metrics == before[one.content]
    assert confirmed["keep", 0.01, 1, 20] == 1


def test_the_verdict_names_the_learning_rate():
    def evaluate(trial, report):
        far = abs(math.log10(trial.config[LR]) + 1)
        return Outcome(1.0 + far + 0.001 * noise(trial))

    space = Space(("orthogonal", "normal"), {LR: around(0.01)})
    result = find(evaluate, space, trials=12, lr_key=LR, confirm_seeds=5)
    assert result.best.kind == "tuned"
    assert "the gain is the learning rate's: keep your init, set lr=0.1" in result.verdict()
    overlay = result.overlay()
    assert overlay["model"]["init_args"]["lr"] == 0.1
    [callback] = overlay["trainer"]["callbacks+"]
    assert callback["init_args"] == {"strategy": "keep"}
    assert result.suggestion() == InitSpec("keep")


def test_the_front_of_two_goals_goes_on():
    def evaluate(trial, report):
        name = trial.spec.strategy
        one, two = {"orthogonal": (0.1, 1.0), "normal": (1.0, 0.1)}.get(name, (1.0, 1.0))
        return Outcome(one + 0.001 * noise(trial), others=(two + 0.001 * noise(trial),))

    fixed = tuple(InitSpec(name) for name in ("orthogonal", "normal", "uniform"))
    result = find(evaluate, Space(fixed), trials=6, monitor=["a", "b"], confirm_seeds=5)
    assert [goal.name for goal in result.goals] == ["a", "b"]
    assert {"orthogonal", "normal"} <= {one.spec.strategy for one in result.candidates}
    assert result.best.spec.strategy in ("orthogonal", "normal")
    by_name = {one.spec.strategy: one for one in result.candidates}
    first, second = result.versus(by_name["normal"])
    assert abs(first.gain) < 0.01
    assert second.gain == pytest.approx(0.9, abs=0.01)
    assert result.heads(1)[1].startswith("b,")
    assert result.rows(0) != result.rows(1)
    assert len(result.to_dict()["candidates"][0]["goals"]) == 2
