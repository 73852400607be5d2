"""A search that was cut off goes on: nothing finished is lost, nothing is run twice."""

from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from lightning_init import InitSpec, SearchResult, search_init
from lightning_init.search.journal import open_storage
from lightning_init.search.records import OtherStudyError
from lightning_init.search.space import Space, around
from tests.search.fakes import LR, SPACE, AtCall, Recorded, interrupt, valley


def find(evaluate, path: Path, **arguments):
    wanted = {"trials": 8, "steps": 20, "confirm_seeds": 3, "storage": path, "identity": "one"}
    return search_init(evaluate, SPACE, **{**wanted, **arguments})


def stored(path: Path, name: str = "search") -> list[optuna.trial.FrozenTrial]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with open_storage(path) as storage:
        return optuna.load_study(study_name=name, storage=storage).trials


def finished(path: Path) -> dict[int, tuple]:
    done = [trial for trial in stored(path) if trial.state.name == "COMPLETE"]
    return {t.number: (t.params, t.value, t.user_attrs, t.datetime_complete) for t in done}


@pytest.mark.parametrize("at", range(1, 21))
def test_interrupted_at_any_trial_the_same_call_goes_on(tmp_path, at):
    path = tmp_path / "j"
    first = Recorded(tmp_path, trouble=AtCall(at, interrupt))
    with pytest.raises(KeyboardInterrupt):
        find(first, path)
    before = finished(path)
    assert len(before) == min(at - 1, 8)
    assert not [trial for trial in stored(path) if trial.state.name == "RUNNING"]
    result = find(Recorded(tmp_path), path)
    after = finished(path)
    assert {number: after[number] for number in before} == before
    assert len(after) == 8
    assert "RUNNING" not in {row["state"] for row in result.trials}
    again = Counter(call[:3] for call in first.calls)
    assert sorted(again.values()) == [1] * 19 + [2], "only the interrupted trial is run twice"
    assert result.suggestion() == InitSpec("orthogonal")


def test_a_finished_search_runs_nothing_again(tmp_path):
    evaluate = Recorded(tmp_path)
    one = find(evaluate, tmp_path / "j")
    calls = evaluate.calls
    two = find(evaluate, tmp_path / "j")
    assert evaluate.calls == calls
    assert two.to_dict() == one.to_dict()


def test_more_trials_go_on(tmp_path):
    evaluate = Recorded(tmp_path)
    find(evaluate, tmp_path / "j", trials=3)
    few = finished(tmp_path / "j")
    assert len(few) == 3
    result = find(evaluate, tmp_path / "j", trials=10)
    many = finished(tmp_path / "j")
    assert {number: many[number] for number in few} == few
    assert len(many) == 10
    screened = Counter(call[:2] for call in evaluate.calls if call[2] == 0)
    assert set(screened.values()) == {1}
    assert {name for name, _ in screened} == set(SPACE.strategies), "recipes that were left"
    assert len(result.trials) == 10


def test_more_seeds_add_only_the_new_ones(tmp_path):
    evaluate = Recorded(tmp_path)
    find(evaluate, tmp_path / "j", confirm_seeds=2)
    before = len(evaluate.calls)
    result = find(evaluate, tmp_path / "j", confirm_seeds=4)
    assert Counter(call[2] for call in evaluate.calls[before:]) == {3: 4, 4: 4}
    assert [run.seed for run in result.baseline.runs] == [1, 2, 3, 4]


def test_another_identity_is_refused_and_changes_nothing(tmp_path):
    evaluate = Recorded(tmp_path)
    find(evaluate, tmp_path / "j")
    before, calls = finished(tmp_path / "j"), evaluate.calls
    with pytest.raises(OtherStudyError, match="another configuration"):
        find(evaluate, tmp_path / "j", identity="two")
    assert finished(tmp_path / "j") == before
    assert evaluate.calls == calls


@pytest.mark.slow
def test_killed_after_any_record_of_the_journal_the_same_call_goes_on(tmp_path):
    whole = tmp_path / "whole"
    find(Recorded(tmp_path), whole, trials=5, confirm_seeds=2)
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) > 60
    for end in range(0, len(lines) + 1):
        folder = tmp_path / str(end)
        folder.mkdir()
        path, evaluate = folder / "j", Recorded(folder)
        path.write_bytes(b"".join(lines[:end]))
        done = set(finished(path)) if b'"search"' in path.read_bytes() else set()
        result = find(evaluate, path, trials=5, confirm_seeds=2)
        assert done <= set(finished(path)), end
        assert len(finished(path)) >= 5, end
        assert {trial.state.name for trial in stored(path)} <= {"COMPLETE", "FAIL"}, end
        assert result.baseline.spec == InitSpec("keep"), end
        assert result.baseline.config == {LR: 0.01}, end
        assert result.suggestion() == InitSpec("orthogonal"), end
        screened = {call[0] for call in evaluate.calls if call[2] == 0}
        known = {t.params.get("strategy") for t in stored(path) if t.state.name == "COMPLETE"}
        assert screened <= known == set(SPACE.strategies), end


def test_the_file_opens_in_plain_optuna(tmp_path):
    find(Recorded(tmp_path), tmp_path / "j")
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "j")))
    study = optuna.load_study(study_name="search", storage=storage)
    assert study.best_trial.params["strategy"] == "orthogonal"
    assert study.best_trial.params[LR] == 0.01


def test_a_database_works_and_goes_on(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    evaluate = Recorded(tmp_path, trouble=AtCall(3, interrupt))
    with pytest.raises(KeyboardInterrupt):
        find(evaluate, url, trials=5)
    result = find(evaluate, url, trials=5)
    assert [row["state"] for row in result.trials].count("COMPLETE") == 5
    assert result.suggestion() == InitSpec("orthogonal")


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_that_goes_on_proposes_nothing_twice(tmp_path, sampler):
    find(Recorded(tmp_path), tmp_path / "j", trials=9, sampler=sampler)
    result = find(Recorded(tmp_path), tmp_path / "j", trials=15, sampler=sampler)
    rates = [trial.params[LR] for trial in result.study.trials if trial.params[LR] != 0.01]
    assert len(rates) == len(set(rates)) >= 8


def test_a_folder_alone_gives_the_result_back(tmp_path):
    lost = "no search in .* it has no study.journal"
    with pytest.raises(ValueError, match=lost):
        SearchResult.load(tmp_path)
    path = tmp_path / "study.journal"
    with pytest.raises(KeyboardInterrupt):
        find(Recorded(tmp_path, trouble=AtCall(11, interrupt)), path)
    with pytest.raises(ValueError, match="has not ended: the command that began it goes on"):
        SearchResult.load(tmp_path)
    result = find(Recorded(tmp_path), path, lr_key=LR, confirm_steps=40)
    again = SearchResult.load(tmp_path)
    assert again.to_dict() == result.to_dict()
    assert again.rates == result.rates


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("goals", {"mode": "max"}),
        ("goals", {"mode": ("min", "min"), "monitor": ("a", "b")}),
        ("goals", {"monitor": "other"}),
        ("steps", {"steps": 20}),
        ("seed", {"seed": 5}),
        ("space", {"space": Space(("orthogonal", "uniform"), {LR: around(0.1)})}),
    ],
)
def test_trials_that_cannot_be_compared_are_not_mixed(tmp_path, name, changed):
    given = {"space": SPACE, "trials": 3, "steps": 10, "confirm_seeds": 2, "lr_key": LR}
    given["storage"] = tmp_path / "journal"
    first = search_init(valley, **given)
    with pytest.raises(ValueError, match=f"a search with other {name}.*another storage"):
        search_init(valley, **{**given, **changed})
    again = search_init(valley, **{**given, "confirm_seeds": 3, "confirm_steps": 30})
    assert [row["value"] for row in again.trials] == [row["value"] for row in first.trials]


def test_crashes_after_a_good_session_do_not_end_the_search(tmp_path):
    find(Recorded(tmp_path), tmp_path / "j", trials=5)

    def crash(trial, report):
        raise RuntimeError("conv9")

    result = find(crash, tmp_path / "j", trials=9)
    assert [row["state"] for row in result.trials].count("COMPLETE") == 9
