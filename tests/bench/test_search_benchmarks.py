"""The benchmarks of the search: their trainings are what the search trains, and a row is right."""

import argparse
import math
from dataclasses import replace

import pytest

from benchmarks import search_grid, search_runs, search_wins
from benchmarks.search_tasks import LR, MONITOR, fit_of, run, tasks
from lightning_init import InitSpec
from lightning_init.search.evaluate import JobEvaluate
from lightning_init.search.job import Job
from lightning_init.search.objectives import Objective
from lightning_init.search.trial import Trial


@pytest.mark.parametrize("key", tasks())
def test_a_training_by_hand_is_a_trial_of_the_search(key):
    # Two paths that share no loop: a Trainer by hand, and a Job that LightningCLI's parser built.
    task = tasks()[key]
    spec, lr = InitSpec("kaiming_normal"), task.lr / 3
    by_hand = run(fit_of(key, spec, lr, 7, 3))
    evaluate = JobEvaluate(Job(task.config).plain(), (Objective("last", MONITOR),))
    trial = evaluate(Trial(spec, {LR: lr}, 7, 3, gated=False), lambda step, loss: False)
    assert by_hand["metric"] == trial.metric
    assert by_hand["done"] == trial.info["steps"] == 3


def test_a_stored_training_is_not_trained_again_and_another_is(tmp_path, monkeypatch):
    trained = []

    def counted(fit):
        trained.append(fit)
        return {"metric": 0.1 * fit.seed}

    monkeypatch.setattr(search_runs, "run", counted)
    fits = [fit_of("mlp", InitSpec("keep"), 0.03, seed, 5) for seed in (1, 2)]
    first = search_runs.cached([*fits, fits[0]], tmp_path)
    assert search_runs.cached(fits, tmp_path) == first == {fits[0]: 0.1, fits[1]: 0.2}
    others = [replace(fits[0], steps=6), replace(fits[0], lr=0.031), replace(fits[0], task="cnn")]
    others.append(fit_of("mlp", InitSpec("auto", {"scale": 1.5}), 0.03, 1, 5))
    search_runs.cached(others, tmp_path)
    assert trained == [*fits, *others]


def test_a_training_that_diverged_counts_as_twice_the_loss_of_guessing(tmp_path, monkeypatch):
    fits = [fit_of("mlp", InitSpec("keep"), 0.03, seed, 5) for seed in (1, 2, 3)]
    metrics = dict(zip(fits, (None, 1e9, 2.0), strict=True))
    monkeypatch.setattr(search_runs, "run", lambda fit: {"metric": metrics[fit]})
    worst = 2 * math.log(10)
    assert list(search_runs.cached(fits, tmp_path).values()) == [worst, worst, 2.0]


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.9, 1.1, 1.0), "better"),
        ((-0.05, 0.1, -0.1), "not worse"),
        ((1.0, -1.0, 0.1), "undecided"),
        ((-0.9, -1.1, -1.0), "worse"),
    ],
)
def test_the_verdict_is_read_off_the_paired_interval(gains, verdict):
    keep = [2.0, 5.0, 3.0]  # spread wide: only pairs can tell
    spread = 0.5
    ours = [loss - spread * gain for loss, gain in zip(keep, gains, strict=True)]
    assert search_wins.judged(ours, keep, spread).split("] ")[1] == verdict
    assert search_wins.judged(keep, keep, spread) == "the same"


@pytest.mark.slow
@pytest.mark.parametrize("module", [search_wins, search_grid])
def test_quick_runs_through_and_a_second_time_trains_nothing(module, tmp_path, monkeypatch):
    if module is search_grid:
        pytest.importorskip("optuna_integration")
    args = argparse.Namespace(quick=True, only="", seed=0, repeats=1, workers=1, cache=tmp_path)
    first = module.report(args)
    monkeypatch.setattr(search_runs, "run", None)
    monkeypatch.setattr(module, "search_init", None)
    assert module.report(args) == first
    assert first.count("deep tanh MLP") == 1
