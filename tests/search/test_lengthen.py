"""Where nothing learns, trials begin anew, longer; nothing that was tried is lost."""

from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest

from lightning_init import SearchResult, search_init
from lightning_init.search.budget import Budget
from lightning_init.search.journal import open_storage
from lightning_init.search.lengthen import learned, longer
from lightning_init.search.study import JOURNAL
from lightning_init.search.trial import Outcome, Report, Trial
from tests.search.fakes import SPACE, AtCall, Recorded, interrupt

WAKES = 40  # the step at which `orthogonal` begins to learn


def sleeper(trial: Trial, report: Report) -> Outcome:
    """Nothing learns in the first steps, and later one strategy only."""
    random = np.random.default_rng([len(trial.spec.strategy), trial.seed])
    steps = np.arange(1, trial.steps + 1)
    learns = trial.spec.strategy == "orthogonal"
    losses = 2.3 + 0.02 * random.standard_normal(trial.steps)
    losses -= 0.03 * np.maximum(0, steps - WAKES) * learns
    curve = tuple((int(step), float(loss)) for step, loss in zip(steps, losses, strict=True))
    return Outcome(curve[-1][1], curve)


def find(evaluate: Recorded, path: Path | str | None, **arguments: object) -> SearchResult:
    wanted = {"trials": 10, "steps": 20, "longest_steps": 90, "confirm_seeds": 2, "storage": path}
    return search_init(evaluate, SPACE, **{**wanted, **arguments})


def studies(path: Path) -> dict[str, list[optuna.trial.FrozenTrial]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with open_storage(path) as storage:
        return {
            one.study_name: storage.get_all_trials(one._study_id)
            for one in storage.get_all_studies()
        }


def ended(path: Path, name: str) -> int:
    return sum(trial.state.name == "COMPLETE" for trial in studies(path)[name])


def test_trials_become_three_times_as_long_and_find_what_learns(tmp_path):
    evaluate, states = Recorded(tmp_path, sleeper), []
    result = find(evaluate, tmp_path / JOURNAL, progress=states.append)
    assert [call[3] for call in evaluate.calls[:9]] == [20] * 8 + [60]
    assert {call[3] for call in evaluate.calls[8:]} == {60}
    assert len(result.trials) == 10
    assert {trial["curve"][-1][0] for trial in result.trials if trial["metric"]} == {60}
    assert result.best.spec.strategy == "orthogonal"
    assert result.steps == 60
    assert "in trials of 20 steps: they have 60 now" in result.note
    assert result.note in result.lines()
    assert [states[0].note, states[-1].note] == ["", result.note]
    assert ended(tmp_path / JOURNAL, "search of 20 steps") == 8
    assert SearchResult.load(tmp_path).to_dict() == result.to_dict()


def test_what_learns_has_as_many_steps_as_were_asked_for(tmp_path):
    evaluate = Recorded(tmp_path)
    assert not find(evaluate, tmp_path / JOURNAL).note
    assert {call[3] for call in evaluate.calls} == {20}


@pytest.mark.parametrize("longest", [0, 20])
def test_not_beyond_what_is_allowed(tmp_path, longest):
    evaluate = Recorded(tmp_path, sleeper)
    result = find(evaluate, None, longest_steps=longest)
    assert {call[3] for call in evaluate.calls} == {20}
    assert any("pass longer --steps" in line for line in result.lines())


@pytest.mark.parametrize("at", [3, 8, 9, 10, 15, 19, 25])
def test_interrupted_at_any_trial_the_same_call_goes_on(tmp_path, at):
    path = tmp_path / JOURNAL
    once = Recorded(tmp_path, sleeper, AtCall(at, interrupt))
    with pytest.raises(KeyboardInterrupt):
        find(once, path)
    result = find(Recorded(tmp_path, sleeper), path)
    again = Counter(call[:4] for call in once.calls)
    assert sorted(again.values())[-2:] == [1, 2], "only the interrupted trial is run twice"
    assert ended(path, "search of 20 steps") == 8
    assert len([t for t in result.trials if t["state"] in ("COMPLETE", "PRUNED")]) == 10
    assert result.best.spec.strategy == "orthogonal"


@pytest.mark.parametrize("where", ["copy_study", "delete_study"])
@pytest.mark.parametrize("after", [False, True])
def test_cut_off_while_the_short_trials_are_set_aside(tmp_path, monkeypatch, where, after):
    path, real = tmp_path / JOURNAL, getattr(optuna, where)

    def cut(**arguments: object) -> None:
        if after:
            real(**arguments)
        raise KeyboardInterrupt

    evaluate = Recorded(tmp_path, sleeper)
    with monkeypatch.context() as patched:
        patched.setattr(optuna, where, cut)
        with pytest.raises(KeyboardInterrupt):
            find(evaluate, path)
    result = find(evaluate, path)
    assert [call[3] for call in evaluate.calls[:9]] == [20] * 8 + [60]
    assert ended(path, "search of 20 steps") == 8
    assert result.best.spec.strategy == "orthogonal"


@pytest.mark.parametrize("longest", [0, 20, 60, 65, 5000])
def test_what_is_long_already_goes_on_whatever_is_allowed_now(tmp_path, longest):
    path = tmp_path / JOURNAL
    evaluate = Recorded(tmp_path, sleeper)
    first = find(evaluate, path)
    done = len(evaluate.calls)
    again = find(evaluate, path, longest_steps=longest)
    assert len(evaluate.calls) == done, "all is there"
    assert again.to_dict() == first.to_dict()
    more = find(evaluate, path, longest_steps=longest, confirm_seeds=3, trials=12)
    assert {call[3] for call in evaluate.calls[done:]} == {60}
    assert more.note == first.note
    assert SearchResult.load(tmp_path).to_dict() == more.to_dict()


def test_read_while_the_short_trials_are_set_aside(tmp_path, monkeypatch):
    path, real = tmp_path / JOURNAL, optuna.delete_study

    def cut(**arguments: object) -> None:
        real(**arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna, "delete_study", cut)
    with pytest.raises(KeyboardInterrupt):
        find(Recorded(tmp_path, sleeper), path)
    with pytest.raises(ValueError, match="begins anew with longer trials: the command that"):
        SearchResult.load(tmp_path)


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.parametrize("database", [False, True])
def test_several_goals_and_a_database(tmp_path, sampler, database):
    def two(trial: Trial, report: Report) -> Outcome:
        found = sleeper(trial, report)
        return Outcome(found.metric, found.curve, others=(float(len(trial.spec.strategy)),))

    storage = f"sqlite:///{tmp_path}/s.db" if database else tmp_path / JOURNAL
    evaluate = Recorded(tmp_path, two)
    wanted = {"mode": ("min", "max"), "monitor": ("a", "b"), "sampler": sampler}
    first = find(evaluate, storage, **wanted)
    assert first.steps == 60
    assert len(first.trials) == 10
    done = len(evaluate.calls)
    assert find(evaluate, storage, **wanted).to_dict() == first.to_dict()
    assert len(evaluate.calls) == done


def test_workers_lengthen_too(tmp_path):
    result = find(Recorded(tmp_path, sleeper), tmp_path / JOURNAL, workers=2)
    assert result.steps == 60
    assert ended(tmp_path / JOURNAL, "search of 20 steps") in (8, 9)
    assert len([t for t in result.trials if t["state"] in ("COMPLETE", "PRUNED")]) == 10


def curve(values: np.ndarray) -> list[tuple[int, float]]:
    return [(step, float(value)) for step, value in enumerate(values, start=1)]


def test_what_has_learned_is_told_from_what_came_down_to_guessing():
    steps, noise = np.arange(80), np.random.default_rng(0).standard_normal(80)
    guess, tall = curve(2.303 + 0.02 * noise), curve(2.3 + 8 * np.exp(-steps / 8) + 0.02 * noise)
    assert learned([guess] * 3) is False
    assert learned([guess, guess, tall]) is False
    start = 2.303 + 0.02 * float(noise[:8].mean())
    for share, enough in ((0.049, False), (0.051, True)):
        sudden = np.where(steps < 30, 2.4, (1 - share) * start)
        assert learned([guess, tall, curve(sudden)]) is enough
    # The loss of an autoencoder has a floor: a fall of 2 % that goes on is one.
    slow, still = curve(550 - 0.14 * steps + 0.3 * noise), curve(550 + 0.3 * noise)
    assert learned([still, still, slow]) is True
    assert learned([still, still, still]) is False
    # What still comes down, but is above guessing, has not got there yet.
    assert learned([guess, guess, curve(4.0 - 0.01 * steps + 0.01 * noise)]) is False
    for unknown in (curve(2.3 - steps[:11]), curve(-1.0 - steps), curve(np.full(80, np.nan))):
        assert learned([unknown] * 3) is None
    assert learned([guess, guess]) is None


def test_how_much_longer():
    def lengths(**arguments: int) -> tuple[int, int]:
        more = longer(Budget(**arguments))
        assert more is not None
        return more.steps, more.horizon

    assert lengths(steps=80, confirm_steps=240, longest_steps=250) == (250, 250)
    assert lengths(steps=80, confirm_steps=240, longest_steps=5000) == (240, 720)
    assert lengths(steps=80, longest_steps=5000) == (240, 240)
    assert lengths(steps=80, confirm_steps=240, longest_steps=100) == (100, 100)
    assert longer(Budget(steps=80, longest_steps=80)) is None
    assert longer(Budget(steps=80)) is None
