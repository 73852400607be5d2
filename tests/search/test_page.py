"""The report of a search as HTML: one file, well formed, readable whatever was found."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from lightning_init import Outcome, search_init
from lightning_init.search.overview import Overview
from lightning_init.search.page import page
from lightning_init.search.space import Space, around
from tests.search.fakes import LR, SPACE, crash, half_unhealthy, valley

VOID = {"meta", "br"}


class Read(HTMLParser):
    """Every element is closed in order; collects what is visible."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.words, self.titles, self.scripts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ("src", "href")]
        assert not any(key.startswith("on") for key, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)
            if self.open[-1] == "h2":
                self.titles.append(data)

    @property
    def text(self):
        return " ".join(self.words)

    @property
    def figures(self):
        return [json.loads(one) for one in self.scripts if one.startswith('{"data"')]


def find(evaluate=valley, space=SPACE, **arguments):
    return search_init(
        evaluate, space, **{"trials": 12, "steps": 20, "confirm_seeds": 3, **arguments}
    )


def read(result, title="run"):
    found = Read(page(Overview.of(result, "runs/x"), title))
    assert found.links == []
    assert sum(len(script) > 1_000_000 for script in found.scripts) == 1, "plotly, once"
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", found.text)
    return found


def test_every_section_of_a_search():
    result = find(trials=24, lr_key=LR, confirm_steps=40)
    found = read(result)
    assert found.titles == [
        "Confirmation on fresh seeds",
        "The learning rate's part, and the init's",
        "Loss of the confirmed runs",
        "How far the learning rate may be off",
        "Trials in order",
        "Per strategy",
        "What mattered",
        "Axis by axis",
        "Each trial",
        "Surroundings",
    ]
    assert len(found.figures) >= 7
    assert result.verdict() in found.text
    assert all(line in found.text for line in result.lines())
    assert "--config runs/x/best.yaml" in found.text
    for row in result.rows():
        assert all(cell in found.words for cell in row if cell)
    assert "confirmation seeds 1, 2, 3" in re.sub(r"\s+", " ", found.text)


def test_a_result_without_a_folder_names_no_file():
    found = Read(page(Overview.of(find(trials=4))))
    assert "best.yaml" not in found.text


def test_one_trial():
    found = read(find(trials=1))
    assert "There was nobody to confirm" in found.text
    assert "Too few different healthy trials" in found.text
    assert "Per strategy" in found.titles


def test_all_unhealthy():
    def sick(trial, report):
        return Outcome(None, ((1, math.nan),), reason="activations vanish")

    found = read(find(sick))
    assert "No trial was healthy" in found.text
    assert "Stopped:" in found.words
    assert found.text.count("unhealthy") >= 12


def test_crashes_are_told():
    def fragile(trial, report):
        if trial.spec.strategy == "normal":
            crash()
        return valley(trial, report)

    found = read(find(fragile))
    assert "crashed" in found.words
    assert "out of luck" in found.text
    assert "No healthy trial: normal." in found.text


def test_findings_open_and_calibration_is_told():
    finding = {
        "detector": "dead_units", "severity": "error", "where": "net.1", "step": 4,
        "message": "60 % are <dead>", "remedy": "another init",
    }  # fmt: skip

    def evaluate(trial, report):
        info = {"findings": [finding, {**finding, "severity": "info"}], "calibration": "lsuv: x"}
        return Outcome(1.0 + trial.seed, info=info)

    text = page(Overview.of(find(evaluate, trials=3)))
    table = text.split("<h2>Each trial</h2>")[1]
    assert table.count("<summary>1 error, 1 info, calibration taken back</summary>") == 3
    told = "<b>ERROR dead_units</b> at <code>net.1</code>, step 4: 60 % are &lt;dead&gt;"
    assert table.count(told) == 3
    assert "Fix: another init" in table
    assert "<b>Calibration taken back:</b> lsuv: x" in table


def test_markup_of_others_stays_text():
    bad = "</script><script>alert(1)</script>"

    def evaluate(trial, report):
        if trial.spec.strategy == "normal":
            return Outcome(None, reason=bad)
        if trial.spec.strategy == "keep" and trial.seed == 1:
            return Outcome(None, reason=bad)
        return valley(trial, report)

    result = find(evaluate, monitor=bad)
    scripts = len(read(find(trials=12)).scripts)
    text = page(Overview.of(result), bad)
    found = Read(text)
    assert "alert(1)" in found.text
    assert not any(script == "alert(1)" for script in found.scripts)
    assert len(found.scripts) <= scripts
    assert f"Init search: {bad}" in found.text


def test_several_goals_have_a_table_each():
    def two(trial, report):
        found = valley(trial, report)
        return Outcome(found.metric, found.curve, others=(trial.seed + 0.5,))

    result = find(two, monitor=["loss", "gap"], mode=["min", "max"])
    found = read(result)
    assert "Pareto front" in found.titles
    for goal in (0, 1):
        assert result.heads(goal)[1] in found.words


@pytest.mark.slow
def test_five_hundred_trials_stay_a_file_that_is_sent():
    finding = {
        "detector": "dead_units", "severity": "warning", "where": "net.1", "step": 0,
        "message": "60 % are dead " * 10, "remedy": "another init " * 10,
    }  # fmt: skip

    def evaluate(trial, report):
        found = half_unhealthy(trial, report)
        return Outcome(found.metric, found.curve, found.reason, info={"findings": [finding] * 4})

    space = Space(("orthogonal", "normal", "uniform"), {LR: around(0.01)})
    result = find(evaluate, space, trials=500)
    found = read(result)
    assert len(page(Overview.of(result))) < 9_000_000
    assert found.text.count("dead_units") == 2000
