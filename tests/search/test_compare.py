"""Given inits against keep: fresh seeds, paired, resumable."""

from collections import Counter

import pytest

from lightning_init import InitSpec, compare_specs, search_init
from lightning_init.search.finalists import HopelessError
from lightning_init.search.records import OtherStudyError
from lightning_init.search.trial import Outcome
from tests.search.fakes import (
    LR,
    SPACE,
    AtCall,
    Recorded,
    always_raises,
    interrupt,
    noise,
    only_noise,
)


def orthogonal_wins(trial, report):
    return Outcome(2.0 - (trial.spec.strategy == "orthogonal") + trial.seed % 5 / 1000)


def compared(evaluate, candidates=("orthogonal", "normal"), **arguments):
    return compare_specs(evaluate, candidates, **{"seeds": 4, "steps": 20, **arguments})


def test_the_better_one_is_found_on_fresh_seeds(tmp_path):
    evaluate = Recorded(tmp_path, orthogonal_wins)
    result = compared(evaluate)
    assert result.suggestion() == InitSpec("orthogonal")
    assert result.baseline.spec == InitSpec("keep")
    assert result.baseline.config == {}
    calls = Counter(call[:4] for call in evaluate.calls)
    wanted = {(n, 0.0, s, 20) for n in ("keep", "orthogonal", "normal") for s in range(1000, 1004)}
    assert calls == dict.fromkeys(wanted, 1)
    assert not any(gated for *_, gated in evaluate.calls)


def test_seeds_of_a_search_in_the_same_file_are_not_used(tmp_path):
    evaluate = Recorded(tmp_path, orthogonal_wins)
    path = tmp_path / "j"
    search_init(evaluate, SPACE, trials=5, confirm_seeds=3, seed=999, storage=path)
    before = len(evaluate.calls)
    result = compared(evaluate, storage=path)
    assert [run.seed for run in result.baseline.runs] == [1003, 1004, 1005, 1006]
    assert {call[2] for call in evaluate.calls[before:]} == {1003, 1004, 1005, 1006}


def test_it_goes_on_and_more_seeds_add_only_the_new(tmp_path):
    path = tmp_path / "j"
    with pytest.raises(KeyboardInterrupt):
        compared(Recorded(tmp_path, orthogonal_wins, AtCall(5, interrupt)), storage=path)
    evaluate = Recorded(tmp_path, orthogonal_wins)
    assert len(evaluate.calls) == 5
    compared(evaluate, storage=path)
    assert len(evaluate.calls) == 13, "the one that was cut off is run again"
    compared(evaluate, storage=path, seeds=5)
    assert Counter(call[2] for call in evaluate.calls[13:]) == {1004: 3}
    compared(evaluate, ("orthogonal", "uniform"), storage=path)
    assert {call[0] for call in evaluate.calls[16:]} == {"uniform"}
    with pytest.raises(OtherStudyError):
        compared(evaluate, storage=path, identity="two")


def test_configuration_keys_go_with_a_candidate():
    def evaluate(trial, report):
        return Outcome(1.0 - trial.config.get(LR, 0.0) + trial.seed % 3 / 1000)

    result = compared(evaluate, [("keep", {LR: 0.5}), "keep", "normal"])
    assert [one.label for one in result.candidates] == ["keep lr=0.5", "normal"]
    assert result.best.config == {LR: 0.5}
    assert not result.best.is_baseline
    assert f"keep lr=0.5 also sets {LR}: part of the gain may be theirs" in result.lines()


def test_noise_is_no_difference(tmp_path):
    result = compared(only_noise)
    assert result.best.is_baseline
    assert "no difference found" in result.verdict()
    result.save(tmp_path, ("", "compare.json", "compare.html"))
    assert {path.name for path in tmp_path.iterdir()} == {"compare.json", "compare.html"}


@pytest.mark.parametrize(("lost", "said"), [(3, "undecided: keep failed on 3 of 5 seeds, normal"),
                                            (2, "no difference found")])  # fmt: skip
def test_an_init_that_fails_less_often_is_told_where_no_gain_is_shown(lost, said):
    def evaluate(trial, report):
        fails = trial.spec.strategy == "keep" and trial.seed % 5 < lost
        return Outcome(None if fails else 1.0 + 0.1 * noise(trial), reason="odd" if fails else "")

    result = compared(evaluate, ["normal"], seeds=5)
    assert result.best.is_baseline
    assert result.verdict().startswith(said)


def test_mistakes():
    with pytest.raises(ValueError, match="nothing to compare: pass at least one init other than k"):
        compared(only_noise, ["keep"])
    with pytest.raises(ValueError, match=r"`confirm_seeds >= 2` must hold, but got 1"):
        compared(only_noise, seeds=1)
    with pytest.raises(HopelessError, match="every run crashes: RuntimeError: no such layer"):
        compared(always_raises)
