"""The search itself, on evaluate functions that cost nothing."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from scipy import stats

from lightning_init import InitSpec, search_init
from lightning_init.search.finalists import HopelessError
from lightning_init.search.job import ConfigError
from lightning_init.search.space import STRATEGY, Space, around
from lightning_init.search.trial import Outcome, Report, Trial
from tests.search.fakes import (
    LR,
    SPACE,
    OnStrategy,
    Recorded,
    always_raises,
    crash,
    die,
    half_unhealthy,
    loads_with_a_worker,
    mistaken,
    noise,
    only_noise,
    valley,
)

NAMES = ("orthogonal", "normal", "uniform", "xavier_normal")
both = pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])


def find(evaluate, space=SPACE, **arguments):
    return search_init(
        evaluate, space, **{"trials": 8, "steps": 20, "confirm_seeds": 3, **arguments}
    )


def states(result) -> Counter[str]:
    return Counter(row["state"] for row in result.trials)


@both
def test_the_best_init_is_found_and_said_so(tmp_path, workers):
    evaluate = Recorded(tmp_path)
    result = find(evaluate, workers=workers)
    assert result.suggestion() == InitSpec("orthogonal")
    assert result.best.config == {LR: 0.01}
    assert states(result) == {"COMPLETE": 8}
    assert len(evaluate.calls) == 8 + 3 * 4
    assert "orthogonal lr=0.01 wins" in result.verdict()
    assert result.results is result.trials


def test_keep_comes_first_at_the_users_values_and_is_never_stopped(tmp_path):
    evaluate = Recorded(tmp_path)
    find(evaluate, trials=20)
    screened, confirmed = evaluate.calls[:20], evaluate.calls[20:]
    assert screened[0] == ("keep", 0.01, 0, 20, False)
    assert screened[1] == ("auto", 0.01, 0, 20, False)
    assert [call[0] for call in screened[2:5]] == ["orthogonal", "normal", "xavier_normal"]
    assert sum(call[0] == "keep" for call in screened) > 1
    assert not any(gated for name, *_, gated in screened if name == "keep")
    assert all(gated for name, *_, gated in screened if name not in ("keep", "auto"))
    assert not any(gated for *_, gated in confirmed)


def test_an_unhealthy_trial_is_told_as_a_finite_penalty_with_a_constraint():
    result = find(half_unhealthy, Space(NAMES, SPACE.config), trials=25)
    trials = result.study.trials
    bad = [trial for trial in trials if trial.user_attrs["reason"]]
    good = [trial for trial in trials if not trial.user_attrs["reason"]]
    assert len(bad) > 3
    for trial in bad:
        assert trial.state.name == "COMPLETE"
        assert trial.user_attrs["reason"] == "activations vanish"
        assert trial.user_attrs["metric"] is None
        assert trial.constraints == {"health": 1.0}
        before = [t.value for t in good if t.number < trial.number]
        spread = max(before) - min(before)
        assert trial.value - max(before) == pytest.approx(max(0.1 * spread, 0.01 * max(before)))
    assert not any(trial.constraints for trial in good)
    assert {one.number for one in result.candidates} <= {trial.number for trial in good}


def test_the_penalty_is_below_everything_when_larger_is_better():
    def negated(trial, report):
        found = half_unhealthy(trial, report)
        return Outcome(found.metric and -found.metric, reason=found.reason)

    result = find(negated, Space(NAMES, SPACE.config), trials=20, mode="max")
    values = {bool(t.user_attrs["reason"]): t.value for t in result.study.trials}
    worst = min(t.value for t in result.study.trials if not t.user_attrs["reason"])
    assert values[True] < worst
    assert result.suggestion() == InitSpec("orthogonal")


def test_the_sampler_turns_away_from_unhealthy_inits():
    shares = []
    for seed in range(3):
        result = find(half_unhealthy, Space(NAMES, SPACE.config), trials=40, seed=seed)
        later = result.trials[20:]
        shares.append(sum(bool(row["reason"]) for row in later) / len(later))
    assert sum(shares) / 3 < 0.4  # 0.55 at random


@pytest.mark.parametrize("metric", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_counts_as_none(tmp_path, metric):
    def evaluate(trial, report):
        return Outcome(metric) if trial.spec.strategy == "normal" else valley(trial, report)

    result = find(Recorded(tmp_path, evaluate), trials=6)
    told = [t for t in result.study.trials if t.params[STRATEGY] == "normal"]
    assert told
    for trial in told:
        assert (trial.state.name, trial.user_attrs["metric"]) == ("COMPLETE", None)
        assert math.isfinite(trial.value)
        assert str(metric) in trial.user_attrs["reason"]
    result.save(tmp_path)


@both
def test_a_crash_is_tried_once_more_with_the_same_parameters(tmp_path, workers):
    evaluate = Recorded(tmp_path, trouble=OnStrategy(crash))
    result = find(evaluate, workers=workers)
    [failed] = [t for t in result.study.trials if t.state.name == "FAIL"]
    [again] = [t for t in result.study.trials if t.user_attrs.get("retry_of") == failed.number]
    assert failed.params == again.params
    assert "RuntimeError: out of luck" in failed.user_attrs["reason"]
    assert again.state.name == "COMPLETE"
    assert not again.constraints
    assert states(result) == {"COMPLETE": 8, "FAIL": 1}
    assert result.suggestion() == InitSpec("orthogonal")


def test_a_second_crash_is_a_penalty(tmp_path):
    evaluate = Recorded(tmp_path, trouble=OnStrategy(crash, times=99))
    result = find(evaluate, trials=6)
    calls = [call for call in evaluate.calls if call[:3] == ("orthogonal", 0.01, 0)]
    assert len(calls) == 2
    [again] = [t for t in result.study.trials if "retry_of" in t.user_attrs]
    assert again.state.name == "COMPLETE"
    assert again.constraints == {"health": 1.0}
    assert again.value > max(
        t.value for t in result.study.trials if t.number < again.number and t.value
    )
    assert "out of luck" in again.user_attrs["reason"]
    assert states(result) == {"COMPLETE": 6, "FAIL": 1}


@both
def test_when_everything_crashes_it_ends_and_says_how(tmp_path, workers):
    evaluate = Recorded(tmp_path, always_raises)
    with pytest.raises(
        HopelessError, match=r"every trial crashes: RuntimeError: no such layer: conv9"
    ):
        find(evaluate, workers=workers, trials=40)
    assert len(evaluate.calls) <= 3 + workers


@both
def test_a_mistake_in_the_configuration_ends_it_at_once(tmp_path, workers):
    evaluate = Recorded(tmp_path, mistaken)
    with pytest.raises(ConfigError, match=r"^--monitor: unknown metric 'val_los'$"):
        find(evaluate, workers=workers)
    assert len(evaluate.calls) <= 1 + workers


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_trial_repeated(tmp_path):
    evaluate = Recorded(tmp_path, trouble=OnStrategy(die))
    result = find(evaluate, workers=2, storage=tmp_path / "j")
    [failed] = [t for t in result.study.trials if t.state.name == "FAIL"]
    assert failed.user_attrs["reason"] == "crashed: its worker process died (SIGKILL)"
    assert states(result) == {"COMPLETE": 8, "FAIL": 1}
    assert result.suggestion() == InitSpec("orthogonal")


@pytest.mark.slow
def test_a_worker_killed_while_confirming_is_replaced(tmp_path):
    evaluate = Recorded(tmp_path, trouble=_DieWhileConfirming())
    result = find(evaluate, workers=2)
    assert [run.metric is None for run in result.best.runs] == [False] * 3
    assert result.suggestion() == InitSpec("orthogonal")


class _DieWhileConfirming:
    def __call__(self, trial, before):
        if trial.seed == 2 and trial.spec.strategy == "orthogonal" and not before:
            die()


def test_confirmation_is_on_fresh_seeds_and_paired(tmp_path):
    evaluate = Recorded(tmp_path)
    result = find(evaluate, seed=7, confirm_seeds=4, top=2)
    assert {call[2] for call in evaluate.calls[:8]} == {7}
    everyone = [result.baseline, *result.candidates]
    assert len(result.candidates) == 2
    assert not any(one.is_baseline for one in result.candidates)
    for one in everyone:
        assert [run.seed for run in one.runs] == [8, 9, 10, 11]
    asked = Counter((call[0], call[1], call[2]) for call in evaluate.calls[8:])
    wanted = {(c.spec.strategy, c.config[LR], seed) for c in everyone for seed in (8, 9, 10, 11)}
    assert asked == dict.fromkeys(wanted, 1)


def test_the_finalists_are_the_best_of_the_screening():
    result = find(valley, trials=15)
    key = {row["number"]: row["metric"] for row in result.trials}
    chosen = {one.number for one in result.candidates}
    rest = [value for number, value in key.items() if number not in chosen | {0}]
    assert max(key[number] for number in chosen) <= min(rest)


def test_the_baseline_is_not_its_own_rival():
    def evaluate(trial, report):
        return Outcome(abs(math.log10(trial.config[LR]) + 2) + (trial.spec.strategy != "keep"))

    result = find(evaluate)
    assert result.baseline.number == 0
    assert 0 not in [one.number for one in result.candidates]
    assert len({str((one.spec, one.config)) for one in result.candidates}) == 3
    assert result.suggestion() is None


def test_a_failed_confirmation_run_is_kept_as_a_failure():
    def evaluate(trial, report):
        if trial.seed == 2 and trial.spec.strategy == "orthogonal":
            return Outcome(None, reason="exploded")
        return valley(trial, report)

    result = find(evaluate)
    flaky = [one for one in result.candidates if one.spec.strategy == "orthogonal"]
    for one in flaky:
        assert [run.metric is None for run in one.runs] == [False, True, False]
        assert one.runs[1].reason == "exploded"
    assert result.best.spec.strategy != "orthogonal"


def test_nothing_is_suggested_when_there_is_only_noise():
    wrong = 0
    for seed in range(20):
        result = search_init(
            lambda trial, report: Outcome(noise(trial)),
            Space(("orthogonal", "normal", "uniform")),
            trials=6,
            seed=100 * seed,
            confirm_seeds=4,
        )
        wrong += result.suggestion() is not None
    assert wrong <= stats.binom.ppf(0.9999, 20, 0.025)
    assert "no difference found: keep your init" in find(only_noise, confirm_seeds=2).verdict()


def test_keep_at_another_learning_rate_can_win_but_is_not_the_baseline():
    def evaluate(trial, report):
        far = abs(math.log10(trial.config[LR]) + 1)
        return Outcome(far + (trial.spec.strategy != "keep") + 0.001 * noise(trial))

    result = find(evaluate, Space(("orthogonal",), {LR: around(0.01)}), trials=20)
    assert result.best.spec == InitSpec("keep")
    assert not result.best.is_baseline
    assert result.best.config[LR] > 0.02
    assert result.baseline.config == {LR: 0.01}
    assert result.overlay()["model"]["init_args"]["lr"] == result.best.config[LR]


def test_the_same_call_proposes_the_same():
    one, two, other = find(valley), find(valley), find(valley, seed=1)
    assert one.trials[4:] != other.trials[4:]
    for row, same in zip(one.trials, two.trials, strict=True):
        assert (row["spec"], row["config"], row["metric"]) == (
            same["spec"],
            same["config"],
            same["metric"],
        )


def test_gp_works_too():
    pytest.importorskip("scipy")
    result = find(valley, sampler="gp", trials=12)
    assert result.suggestion() == InitSpec("orthogonal")
    assert isinstance(result.study.sampler, optuna.samplers.GPSampler)


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ({"trials": 0}, r"`trials >= 1` must hold, but got 0"),
        ({"steps": 0}, r"`steps >= 1` must hold, but got 0"),
        ({"confirm_seeds": 1}, r"`confirm_seeds >= 2` must hold, but got 1"),
        ({"top": 0}, r"`top >= 1` must hold, but got 0"),
        ({"mode": "less"}, r"mode must be min or max, but got 'less'"),
        ({"sampler": "cma"}, r"sampler must be tpe or gp, but got 'cma'"),
    ],
)
def test_illegal_arguments(tmp_path: Path, argument, text):
    evaluate = Recorded(tmp_path)
    with pytest.raises(ValueError, match=text):
        find(evaluate, **argument, storage=tmp_path / "run" / "j")
    assert not evaluate.calls
    assert not (tmp_path / "run").exists()


def test_a_function_that_cannot_be_sent_to_workers_is_refused():
    with pytest.raises(ValueError, match=r"cannot be sent to worker processes .* pass workers=0"):
        find(lambda trial, report: Outcome(1.0), workers=1)


def test_progress_counts_up():
    said = []
    find(valley, trials=5, progress=said.append)
    assert [state.done for state in said if state.phase == "screening"][-1] == 5
    counts = [state.done for state in said if state.phase == "confirming"]
    assert counts == sorted(counts)
    assert counts[-1] == 12
    assert "orthogonal" in [state.best for state in said if state.phase == "screening"][-1]


@pytest.mark.slow
def test_worker_processes_may_load_data_with_processes_of_their_own():
    result = find(loads_with_a_worker, workers=1, trials=2, confirm_seeds=2)
    assert [row["reason"] for row in result.trials] == ["", ""]


@pytest.mark.slow
def test_a_gp_turns_away_from_what_is_unhealthy():
    shares = []
    for seed in range(3):
        space = Space(NAMES, SPACE.config)
        result = find(half_unhealthy, space, trials=36, seed=seed, sampler="gp")
        later = result.trials[20:]
        shares.append(sum(bool(row["reason"]) for row in later) / len(later))
    assert sum(shares) / 3 < 0.4, shares


@pytest.mark.parametrize("others", [(), (1.0, 2.0)])
def test_an_outcome_with_another_number_of_values_ends_the_search_and_loses_no_recipe(
    tmp_path, others
):
    calls = []

    def wrong(trial: Trial, report: Report) -> Outcome:
        calls.append(trial)
        return Outcome(1.0, others=others)

    two: dict[str, Any] = {"monitor": ("a", "b"), "mode": ("min", "max"), "trials": 3}
    given: dict[str, Any] = {**two, "storage": tmp_path / "journal", "confirm_seeds": 2}
    with pytest.raises(ValueError, match="needs 2 values"):
        search_init(wrong, SPACE, **given)
    assert len(calls) == 1
    found = search_init(lambda *_: Outcome(1.0, others=(2.0,)), SPACE, **given)
    done = [row["spec"]["strategy"] for row in found.trials if row["state"] == "COMPLETE"]
    assert sorted(done)[:2] == ["auto", "keep"]


def test_what_an_evaluate_function_gives_in_tensors_and_numpy_is_kept_as_plain_numbers(tmp_path):
    def odd(trial: Trial, report: Report) -> Outcome:
        value = torch.tensor(1.0 + (trial.spec.strategy == "keep"))
        info = {"at": torch.tensor(2.5), 3: {1}, "far": math.inf, "what": [np.int64(4)]}
        points = ((np.int64(1), np.float32(0.5)), (2, math.nan))
        return Outcome(value, points, info=info, readings=points)

    found = search_init(
        odd, SPACE, trials=3, confirm_seeds=2, confirm_steps=400, storage=tmp_path / "journal"
    )
    found.save(tmp_path)
    run = found.baseline.runs[0]
    assert run.metric == 2.0
    assert run.curve == run.readings == ((1, 0.5),)
    assert run.info == {"at": 2.5, "3": "{1}", "far": None, "what": [4.0]}
    with pytest.raises(TypeError, match="holds numbers"):
        Outcome("0.5")


def test_of_inits_that_begin_with_the_same_weights_one_is_confirmed():
    def evaluate(trial: Trial, report: Report) -> Outcome:
        same = "same" if trial.spec.strategy in ("orthogonal", "xavier_normal") else trial.spec
        return replace(valley(trial, report), info={"init_fingerprint": str(same)})

    result = find(evaluate, trials=5)  # one trial of each
    names = [one.spec.strategy for one in result.candidates if one.kind == "finalist"]
    assert sorted(names) == ["auto", "normal", "orthogonal"]


def test_an_exit_in_the_users_code_is_a_crash():
    def evaluate(trial: Trial, report: Report) -> Outcome:
        if trial.spec.strategy == "normal":
            raise SystemExit(3)
        return valley(trial, report)

    result = find(evaluate, trials=6)
    assert "crashed: SystemExit: 3" in [row["reason"] for row in result.trials]
    assert result.suggestion() == InitSpec("orthogonal")


def test_what_begins_with_the_weights_of_keep_is_not_its_rival():
    def evaluate(trial, report):
        twin = trial.spec.strategy in ("keep", "torch_default")
        found = valley(trial, report)
        return replace(found, info={"init_fingerprint": "k" if twin else str(trial.spec)})

    space = Space((InitSpec("torch_default"), InitSpec("orthogonal")), {LR: around(0.01)})
    result = search_init(evaluate, space, trials=6, steps=5, confirm_seeds=3, lr_key=LR)
    assert {one.spec.strategy for one in result.candidates} <= {"auto", "orthogonal", "keep"}
    assert any(row["spec"]["strategy"] == "torch_default" for row in result.trials)
