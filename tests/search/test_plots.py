"""Figures of a search: what they hold, legal to plotly, honest about what there is not."""

import json
import math

import optuna
import plotly.graph_objects as go
import pytest

from lightning_init import Outcome, search_init
from lightning_init.search import confirmed, plots
from lightning_init.search.overview import Overview
from lightning_init.search.space import Axis, Space, around
from tests.search.fakes import LR, SPACE, half_unhealthy, noise, valley


def find(evaluate=valley, space=SPACE, **arguments):
    return search_init(
        evaluate, space, **{"trials": 16, "steps": 20, "confirm_seeds": 3, **arguments}
    )


def check(figure):
    """Legal to plotly, and plain JSON without NaN."""
    json.dumps(figure, allow_nan=False)
    go.Figure({key: figure[key] for key in ("data", "layout")})
    return figure


def line(figure, name):
    (found,) = [one for one in figure["data"] if one["name"] == name]
    return found


@pytest.fixture(scope="module")
def result():
    return find(lr_key=LR, confirm_steps=40)


@pytest.fixture(scope="module")
def mixed():
    space = Space(("orthogonal", "normal", "uniform"), {LR: around(0.01)})
    return find(half_unhealthy, space, trials=24)


def test_history_is_the_trials_and_the_best_so_far(result):
    figure = check(plots.history(Overview.of(result)))
    metrics = [row["metric"] for row in result.trials]
    assert line(figure, "healthy")["y"] == metrics
    best = [min(metrics[: index + 1]) for index in range(len(metrics))]
    assert line(figure, "best so far")["y"] == [*best, best[-1]]


def test_history_with_larger_is_better():
    result = find(mode="max", trials=8)
    figure = plots.history(Overview.of(result))
    metrics = [row["metric"] for row in result.trials]
    assert line(figure, "best so far")["y"][-1] == max(metrics)


def test_what_is_not_healthy_has_a_lane_of_its_own(mixed):
    figure = check(plots.history(Overview.of(mixed)))
    stopped = [row["number"] for row in mixed.trials if row["reason"]]
    assert len(stopped) > 3
    lane = line(figure, "unhealthy")
    assert (lane["x"], lane["yaxis"]) == (stopped, "y2")
    assert set(line(figure, "healthy")["x"]) == set(range(24)) - set(stopped)


def test_penalties_are_no_metrics(mixed):
    """A stopped trial is told to Optuna with a finite value; nobody is shown it."""
    seen = Overview.of(mixed)
    values = {trial.number: trial.values for trial in mixed.study.trials}
    assert all(values[one.number] for one in seen.trials)
    assert all(one.metric is None for one in seen.trials if one.reason)


def test_the_metric_of_a_trial_that_was_stopped_does_not_count():
    def evaluate(trial, report):
        stopped = trial.spec.strategy == "normal"
        return Outcome(0.001 if stopped else 1.0, reason="diverges" if stopped else "")

    seen = Overview.of(find(evaluate, trials=8))
    assert line(plots.history(seen), "best so far")["y"] == [1.0] * (seen.counts["healthy"] + 1)
    assert "normal" not in {box["name"] for box in plots.strategies(seen)["data"]}


def test_boxes_are_in_order_of_the_median(mixed):
    figure = check(plots.strategies(Overview.of(mixed)))
    names = [box["name"] for box in figure["data"]]
    assert names[-1] == "orthogonal"
    assert not {"normal", "uniform"} & set(names)
    healthy = [r for r in mixed.trials if not r["reason"] and r["spec"]["strategy"] == "orthogonal"]
    assert sorted(figure["data"][-1]["x"]) == sorted(row["metric"] for row in healthy)


def test_a_slice_holds_only_trials_that_use_the_axis(result):
    slices = dict(plots.slices(Overview.of(result)))
    assert "strategy" not in slices
    gain = check(slices["gain"])
    assert {one["name"] for one in gain["data"]} <= {"orthogonal", "xavier_normal"}
    rate = check(slices[LR])
    assert sum(len(one["x"]) for one in rate["data"]) == 16
    assert rate["layout"]["xaxis"]["type"] == "log"


def test_a_slice_over_names():
    space = Space(("orthogonal",), {"model.act": Axis(choices=("<b>relu</b>", "tanh"))})
    figure = dict(plots.slices(Overview.of(find(space=space))))["model.act"]
    check(figure)
    assert figure["layout"]["xaxis"]["type"] == "category"
    assert {x for one in figure["data"] for x in one["x"]} == {"&lt;b>relu&lt;/b>", "tanh"}


def test_the_axis_that_matters_is_the_important_one():
    def evaluate(trial, report):
        return Outcome(abs(math.log10(trial.config[LR]) + 2) + 0.001 * noise(trial))

    seen = Overview.of(find(evaluate, trials=40))
    found = plots.importances(seen)
    assert max(found, key=found.get) == LR
    assert check(plots.importance(seen))["data"][0]["y"][-1] == LR


def test_an_axis_that_a_trial_ignores_has_no_say_in_its_importance():
    """Where only one strategy takes an axis, the other's suggestions for it are noise."""

    def evaluate(trial, report):
        gain = trial.spec.params.get("gain", 1.0)
        far = abs(gain - 1.3) if trial.spec.strategy == "orthogonal" else 0.2
        return Outcome(far + 0.001 * noise(trial))

    seen = Overview.of(find(evaluate, Space(("orthogonal", "normal")), trials=40))
    used = {name for one in seen.trials for name in one.axes if one.strategy == "normal"}
    assert "gain" not in used
    assert plots.importances(seen).keys() <= {"strategy", "gain", "std", "scale"}


@pytest.mark.parametrize("trials", [1, 5])
def test_too_few_trials_have_no_importance(trials):
    assert plots.importance(Overview.of(find(trials=trials))) is None


def test_the_pareto_front_is_optunas():
    def two(trial, report):
        found = valley(trial, report)
        return Outcome(found.metric, found.curve, others=(noise(trial),))

    result = find(two, monitor=["loss", "gap"], mode=["min", "max"])
    (figure,) = plots.pareto(Overview.of(result))
    check(figure)
    front = line(figure, "Pareto front")
    best = {trial.number: tuple(trial.values) for trial in result.study.best_trials}
    assert set(zip(front["x"], front["y"], strict=True)) == set(best.values())
    assert sum(len(one["x"]) for one in figure["data"]) == 16
    assert plots.pareto(Overview.of(find(trials=3))) == []


def test_the_forest_holds_each_paired_difference(result):
    figure = check(confirmed.forest(result))
    dots = line(figure, "one seed")
    assert len(dots["x"]) == 3 * len(result.candidates)
    keep = {run.seed: run.metric for run in result.baseline.runs}
    wanted = {
        round(keep[run.seed] - run.metric, 9) for one in result.candidates for run in one.runs
    }
    assert {round(x, 9) for x in dots["x"]} == wanted
    mean = line(figure, "mean and interval")
    first = result.comparisons[0]
    assert mean["x"][-1] == first.gain
    assert mean["error_x"]["array"][-1] == pytest.approx(first.high - first.gain)
    assert figure["layout"]["yaxis"]["categoryarray"][-1].startswith("1.")


def test_a_failed_seed_is_shown_as_such():
    def evaluate(trial, report):
        if trial.spec.strategy == "orthogonal" and trial.seed == 2:
            return Outcome(None, ((1, 3.0), (7, 9.0)), "nan at <step> 8")
        return valley(trial, report)

    result = find(evaluate)
    figure = check(confirmed.forest(result))
    ours = [one for one in result.candidates if one.spec.strategy == "orthogonal"]
    failed = line(figure, "no pair: it or keep failed")
    assert ours
    assert failed["text"] == ["seed 2: failed: nan at &lt;step> 8"] * len(ours)
    assert max(failed["x"]) < min(0, *line(figure, "one seed")["x"])
    dotted = [one for one in confirmed.curves(result)["data"] if one["line"].get("dash") == "dot"]
    assert any(one["x"] == [1, 7] and one["marker"]["size"] == [0, 9] for one in dotted)


def test_a_keep_that_never_trains_leaves_no_difference_to_draw():
    def evaluate(trial, report):
        failed = trial.spec.strategy == "keep" and trial.seed > 0
        return Outcome(None, reason="exploded") if failed else valley(trial, report)

    result = find(evaluate, trials=6)
    assert result.candidates
    assert confirmed.forest(result) is None
    assert check(confirmed.curves(result))


def test_a_band_is_the_range_of_the_seeds(result):
    data = check(confirmed.curves(result))["data"]
    low, high, mean = data[:3]
    at = mean["x"].index(20)
    losses = [dict(run.curve)[20] for run in result.baseline.runs]
    assert (low["y"][at], high["y"][at]) == (min(losses), max(losses))
    assert mean["y"][at] == pytest.approx(sum(losses) / 3)
    assert len(data) == 3 * (1 + len(result.candidates))


def test_rates_are_full_within_five_percent_of_their_best():
    known = {"keep": ((0.001, 1.2), (0.01, 1.0), (0.1, 1.04)), "b": ((0.001, 2.0), (0.1, None))}
    figure = check(confirmed.rates(known, "loss", "min"))
    assert [c == "#ffffff" for c in line(figure, "keep")["marker"]["color"]] == [True, False, False]
    assert line(figure, "b: failed")["x"] == [0.1]
    assert line(figure, "b")["y"] == [2.0, None]
    assert confirmed.rates({}, "loss", "min") is None
    assert confirmed.rates({"a": ((0.1, None),)}, "loss", "min") is None


def test_the_rates_of_a_search_are_drawn(result):
    figure = check(confirmed.rates(result.rates, result.monitor, result.mode))
    assert {one["name"] for one in figure["data"]} >= {"keep", "orthogonal"}
    keep = line(figure, "keep")
    assert list(zip(keep["x"], keep["y"], strict=True)) == list(result.rates["keep"])


def test_whose_the_gain_is():
    def evaluate(trial, report):
        far = abs(math.log10(trial.config[LR] / 0.1))
        return Outcome(3.0 + far - (trial.spec.strategy == "orthogonal") + 0.001 * noise(trial))

    result = find(evaluate, lr_key=LR, trials=20)
    figure = check(confirmed.parts(result))
    (data,) = figure["data"]
    by = dict(zip((y.partition("<br>")[0] for y in data["y"]), data["x"], strict=True))
    assert by["the init's:"] == pytest.approx(1.0, abs=0.15)
    assert by["both:"] == pytest.approx(by["the init's:"] + by["the learning rate's:"])


@pytest.mark.parametrize(
    ("values", "log"), [([1.0, 1.1, 1.2], False), ([0.1, 0.2, 50.0], True), ([-1.0, 0.1, 90.0], False)]
)  # fmt: skip
def test_an_axis_is_logarithmic_where_a_linear_one_hides_points(values, log):
    assert (plots.scale_of(values).get("type") == "log") is log


def test_nothing_at_all():
    study = optuna.create_study()
    seen = Overview((), (), study)
    assert plots.history(seen) is None
    assert plots.strategies(seen) is None
    assert plots.slices(seen) == []
