"""What is written and shown at the end."""

import json
import math
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
import yaml
from scipy.stats import t as student

from lightning_init import InitCallback, InitSpec, compare_specs, search_init
from lightning_init.search.space import Space, around
from lightning_init.search.trial import Outcome
from lightning_init.strategies.spec import spec_in
from tests.search.fakes import LR, SPACE, half_unhealthy, noise, only_noise, valley


def find(evaluate=valley, space=SPACE, **arguments):
    return search_init(
        evaluate, space, **{"trials": 12, "steps": 20, "confirm_seeds": 3, **arguments}
    )


@pytest.fixture(scope="module")
def result():
    return find()


def strict(text: str) -> object:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_three_files(result, tmp_path):
    result.save(tmp_path / "new" / "run")
    written = {path.name for path in (tmp_path / "new" / "run").iterdir()}
    assert written == {"best.yaml", "results.json", "report.html"}
    data = strict((tmp_path / "new" / "run" / "results.json").read_text())
    assert data == json.loads(json.dumps(result.to_dict()))
    assert len(data["trials"]) == 12
    assert data["winner"]["spec"] == {"strategy": "orthogonal"}
    assert data["candidates"][0]["statistics"]["low"] > 0
    assert [run["seed"] for run in data["baseline"]["runs"]] == [1, 2, 3]


def test_the_overlay_of_a_winner(result, tmp_path):
    result.save(tmp_path)
    path = tmp_path / "best.yaml"
    overlay = yaml.safe_load(path.read_text())
    assert overlay == {
        "seed_everything": 1,
        "model": {"init_args": {"lr": 0.01}},
        "trainer": {
            "callbacks+": [
                {
                    "class_path": "lightning_init.InitCallback",
                    "init_args": {"strategy": "orthogonal"},
                }
            ]
        },
    }
    assert InitSpec.load(path) == result.suggestion()
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert "orthogonal lr=0.01 wins" in head[0]
    assert f"--config {path}" in head[1]
    assert "1, 2, 3" in head[2]


def test_the_overlay_keeps_parameters_and_trainer_keys():
    space = Space(("orthogonal",), {"trainer.gradient_clip_val": around(1.0)})

    def evaluate(trial, report):
        gain = trial.spec.params.get("gain", 1.0)
        wish = 3.0 if trial.spec.strategy == "keep" else abs(gain - 1.5)
        return Outcome(wish + trial.seed / 1e6)

    result = find(evaluate, space, trials=15)
    overlay = result.overlay()
    assert result.best.spec.params["gain"] != 1.0
    assert spec_in(overlay) == result.best.spec.to_dict()
    assert (
        overlay["trainer"]["gradient_clip_val"] == result.best.config["trainer.gradient_clip_val"]
    )


def test_the_overlay_of_keep_changes_no_key(tmp_path):
    result = find(only_noise, seed=5)
    assert result.suggestion() is None
    assert result.best is result.baseline
    result.save(tmp_path)
    overlay = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert set(overlay) == {"seed_everything", "trainer"}
    assert InitSpec.load(tmp_path / "best.yaml") == InitSpec("keep")
    assert "no difference found" in (tmp_path / "best.yaml").read_text()


def test_failures_make_valid_json_and_a_report(tmp_path):
    space = Space(("orthogonal", "normal", "uniform"), {LR: around(0.01)})
    result = find(half_unhealthy, space, trials=14)
    result.save(tmp_path)
    strict((tmp_path / "results.json").read_text())
    page = (tmp_path / "report.html").read_text()
    assert "<p><b>Stopped:</b> activations vanish</p>" in page


def test_a_keep_that_never_trains_loses(tmp_path):
    def evaluate(trial, report):
        if trial.spec.strategy == "keep":
            return Outcome(None, ((1, float("inf")), (2, float("nan"))), "exploded")
        return valley(trial, report)

    result = find(evaluate, trials=6)
    assert result.suggestion() == InitSpec("orthogonal")
    assert "wins: keep has no finite metric on any seed" in result.verdict()
    result.save(tmp_path)
    data = strict((tmp_path / "results.json").read_text())
    assert data["baseline"]["statistics"]["mean"] is None
    assert data["baseline"]["statistics"]["failures"] == 3
    assert result.rows()[-1][4] == "3 of 3"


def test_the_plot_has_a_mean_and_a_band_for_each_candidate(result):
    figure = result.plot()
    assert isinstance(figure, go.Figure)
    assert len(figure.data) == 3 * 4
    low, high, mean = figure.data[:3]
    assert list(mean.x) == list(range(1, 21))
    starts = [run.curve[0][1] for run in result.baseline.runs]
    assert (low.y[0], high.y[0]) == (min(starts), max(starts))
    assert mean.y[0] == pytest.approx(sum(starts) / 3)


def test_to_callback(result):
    callback = result.to_callback(monitor_steps=3)
    assert isinstance(callback, InitCallback)
    assert callback.spec == InitSpec("orthogonal")


def test_a_long_curve_is_thinned(tmp_path):
    result = find(steps=1000, trials=3)
    lengths = [len(run.curve) for run in result.baseline.runs]
    assert max(lengths) <= 60
    assert min(lengths) >= 30


def test_what_is_not_finite_in_a_runs_facts_is_valid_json(tmp_path):
    def evaluate(trial, report):
        return Outcome(1.0 + trial.seed / 10, info={"distance": math.nan, "lr": [[0, math.inf]]})

    find(evaluate, trials=5).save(tmp_path)
    data = strict((tmp_path / "results.json").read_text())
    assert data["baseline"]["runs"][0]["distance"] is None
    assert data["baseline"]["runs"][0]["lr"] == [[0, None]]


def test_where_nothing_trains_there_is_no_difference_to_speak_of():
    def evaluate(trial, report):
        return Outcome(None, reason="loss is nan")

    result = find(evaluate, trials=5)
    assert result.best is result.baseline
    assert result.verdict().startswith("undecided: keep has no metric on any of 3 seeds (loss is")
    assert "look for the cause outside of the init" in result.verdict()


@pytest.mark.parametrize(
    ("screened", "says"), [(False, "failed in the screening"), (True, "failed on every seed")]
)
def test_where_only_keep_trains_nothing_was_compared(screened, says):
    def evaluate(trial, report):
        if trial.spec.strategy == "keep" or (screened and trial.seed == 0):
            return valley(trial, report)
        return Outcome(None, reason="activations vanish")

    result = find(evaluate, trials=5)
    assert result.verdict() == f"nothing to compare: every init but keep {says}: keep your init"


def test_crashes_of_the_screening_are_counted():
    def evaluate(trial, report):
        if trial.spec.strategy == "normal":
            raise RuntimeError("conv9")
        return valley(trial, report)

    [said] = [
        line for line in find(evaluate, trials=5).lines() if "crashed" in line and "of" in line
    ]
    assert "of 5 screening trials crashed, twice each: RuntimeError: conv9" in said


def test_a_calibration_that_was_taken_back_is_said():
    def evaluate(trial, report):
        outcome = valley(trial, report)
        back = trial.spec.strategy == "orthogonal" and trial.seed > 1
        return replace(outcome, info={"calibration": "lsuv taken back: grows" if back else ""})

    assert "orthogonal lr=0.01: in 2 of 3 runs lsuv taken back: grows" in find(evaluate).lines()


def test_a_keep_that_is_unhealthy_is_not_recommended_without_a_word():
    def evaluate(trial, report):
        finding = {"severity": "error", "message": "the loss is not finite"}
        return Outcome(0.1, info={"findings": [finding] if trial.seed < 9 else []})

    said = "; but keep is unhealthy on every seed, and nothing better was found: the loss is not"
    assert said in find(evaluate, trials=5).verdict()
    assert "unhealthy" not in find(evaluate, trials=5, seed=6).verdict()


def test_what_does_not_exist_is_no_number():
    def evaluate(trial, report):
        if trial.spec.strategy == "keep" and trial.seed < 4 and trial.seed != 1:
            return Outcome(None, reason="not reached")
        return valley(trial, report)

    text = "\n".join(["|".join(row) for row in find(evaluate).rows()])
    assert "nan" not in text
    assert "(one pair)" in text


@pytest.mark.parametrize(("fall", "said"), [(0.049, True), (0.051, False)])
def test_trials_that_learned_nothing_are_said_to_be_too_short(fall, said):
    def evaluate(trial, report):  # it falls at once, then not any more
        curve = tuple((step, 2.0 if step < 3 else 2.0 * (1 - fall)) for step in range(1, 21))
        return Outcome(2.0 + noise(trial) / 100, curve)

    text = "\n".join(find(evaluate).lines())
    assert ("no trial has learned anything yet" in text) is said
    assert ("longer --steps" in text) is said


def test_what_five_seeds_or_two_cannot_tell(result):
    said = [line for line in find(confirm_seeds=5).lines() if "failed on 0 of 5 seeds" in line]
    assert said[0].endswith("which excludes a failure rate above 45 % and no lower one (95 %)")
    assert any("above 63 % and no lower" in line for line in result.lines()), "of three"
    assert not any("2 pairs of runs" in line for line in result.lines())
    two = find(confirm_seeds=2)
    assert any("an interval from 2 pairs of runs is not to be trusted" in x for x in two.lines())


def test_two_equal_differences_are_no_win():
    def evaluate(trial, report):
        return Outcome(2.0 - (trial.spec.strategy == "orthogonal"), ((1, 2.0), (2, 1.0)))

    found = find(evaluate, confirm_seeds=2)
    assert found.best is found.baseline
    assert "no difference found" in found.verdict()
    assert "(no interval)" in "".join("".join(row) for row in found.rows())
    assert strict(json.dumps(found.to_dict()))
    assert find(evaluate, confirm_seeds=5).best.spec == InitSpec("orthogonal")


def test_what_is_probably_better_is_told_with_the_seeds_that_may_tell():
    def evaluate(trial, report):
        gain = (0.8, 0.1, 0.5, 0.9, -0.2)[trial.seed % 5] * (trial.spec.strategy == "orthogonal")
        return Outcome(2.0 - gain + (trial.spec.strategy == "normal"))

    few = search_init(evaluate, Space(("orthogonal", "normal")), trials=6, steps=20)
    [said] = [line for line in few.lines() if line.startswith("undecided")]
    assert few.best.is_baseline
    assert "orthogonal is better in 4 of 5 pairs" in said
    seeds = int(said.partition("--confirm-seeds ")[2].split()[0])
    more = search_init(
        evaluate, Space(("orthogonal", "normal")), trials=6, steps=20, confirm_seeds=seeds
    )
    assert more.best.spec.strategy == "orthogonal"
    assert not any(line.startswith("undecided") for line in more.lines())


@pytest.mark.parametrize(("chance", "told"), [(0.895, False), (0.905, True)])
def test_from_which_chance_on_more_seeds_are_advised(chance, told):
    spread = [-0.2, -0.1, 0.0, 0.1, 0.2]
    gain = student.ppf(chance, 4) * np.std(spread, ddof=1) / math.sqrt(5)

    def evaluate(trial, report):
        better = (gain + spread[trial.seed % 5]) * (trial.spec.strategy == "orthogonal")
        return Outcome(2.0 - better)

    found = compare_specs(evaluate, ["orthogonal"], seeds=5)
    assert found.comparisons[0].chance == pytest.approx(chance, abs=1e-6)
    assert any(line.startswith("undecided") for line in found.lines()) is told


def test_seeds_that_may_tell_are_more_than_there_were():
    """Where most runs fail, the pairs that are needed are fewer than the seeds there are."""
    gains = (0.8, 0.1, 0.5, 0.9, -0.2)

    def evaluate(trial, report):
        if trial.seed % 3 and trial.seed < 1100:
            return Outcome(None, reason="loss is nan")
        return Outcome(2.0 - gains[trial.seed // 3 % 5] * (trial.spec.strategy == "orthogonal"))

    found = compare_specs(evaluate, ["orthogonal"], seeds=15)
    assert found.comparisons[0].pairs == 5
    [said] = [line for line in found.lines() if line.startswith("undecided")]
    assert "--confirm-seeds" not in said, "compare has no such option"
    assert int(said.partition("with --seeds ")[2].split()[0]) > 15
