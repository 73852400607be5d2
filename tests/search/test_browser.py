"""The report of a search as a browser without a network draws it."""

import re
from pathlib import Path

import pytest

from lightning_init import Outcome, search_init
from lightning_init.search.overview import Overview
from lightning_init.search.page import page
from lightning_init.search.space import Space, around
from tests.browser import Opened, needs_browser, opened
from tests.search.fakes import LR, half_unhealthy, noise, valley

pytestmark = [needs_browser, pytest.mark.slow]
SPACE = Space(("orthogonal", "normal", "xavier_normal"), {LR: around(0.01)})


def shown(result, path: Path, title: str = "run") -> Opened:
    path.write_text(page(Overview.of(result, "run"), title), encoding="utf-8")
    seen = opened(path)
    assert not seen.complaints
    return seen


def points(dom: str, title: str) -> int:
    """Markers in the figures of one section."""
    part = re.split(r"<h2>", dom.split(f"<h2>{title}</h2>")[1])[0]
    return len(re.findall(r'<path class="point"', part))


def test_every_figure_of_a_search_is_drawn(tmp_path):
    result = search_init(
        half_unhealthy, SPACE, trials=24, steps=20, confirm_seeds=3, confirm_steps=40, lr_key=LR
    )
    path = tmp_path / "report.html"
    seen = shown(result, path)
    wanted = path.read_text().count("<div class='figure'>")
    assert wanted >= 7
    assert seen.drawn == wanted
    trials = len(result.trials)
    assert points(seen.dom, "Trials in order") == trials
    healthy = sum(row["metric"] is not None and not row["reason"] for row in result.trials)
    assert healthy < trials
    assert points(seen.dom, "Per strategy") == healthy
    # A dot per seed and a mean of each candidate; the legend has one of each.
    others = len(result.candidates)
    assert points(seen.dom, "Confirmation on fresh seeds") == others * (3 + 1)
    rows = re.findall(r"<tr class=", seen.dom.split("<h2>Each trial</h2>")[1])
    assert len(rows) == trials


def test_nothing_but_unhealthy_trials(tmp_path):
    def sick(trial, report):
        return Outcome(None, reason="activations vanish")

    result = search_init(sick, SPACE, trials=6, steps=5, confirm_seeds=2)
    seen = shown(result, tmp_path / "report.html")
    assert seen.drawn == 1
    assert points(seen.dom, "Trials in order") == 6


def test_several_goals_and_names_with_markup(tmp_path):
    def evaluate(trial, report):
        found = valley(trial, report)
        return Outcome(found.metric, found.curve, others=(noise(trial),))

    result = search_init(
        evaluate, SPACE, trials=9, steps=5, confirm_seeds=2,
        monitor=["<script>alert(1)</script>", "<b>gap</b>"], mode=["min", "max"],
    )  # fmt: skip
    seen = shown(result, tmp_path / "report.html", "<img src=x onerror=alert(2)>")
    assert points(seen.dom, "Pareto front") == 9
    assert "<img" not in seen.dom
    assert "&lt;img" in seen.dom


def test_a_click_on_a_head_sorts_the_trials(tmp_path):
    result = search_init(valley, SPACE, trials=8, steps=5, confirm_seeds=2)
    text = page(Overview.of(result), "run")
    click = "<script>document.querySelectorAll('table.sorted th')[3].click()</script></body>"
    path = tmp_path / "report.html"
    path.write_text(text.replace("</body>", click), encoding="utf-8")
    seen = opened(path)
    table = seen.dom.split("<h2>Each trial</h2>")[1]
    order = [int(number) for number in re.findall(r"<tr class=\"\"><td>(\d+)</td>", table)]
    metrics = {row["number"]: row["metric"] for row in result.trials}
    assert order == sorted(order, key=lambda number: metrics[number])
    assert order != sorted(order)


def test_a_complaint_is_heard_and_no_host_is_known(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(
        "<p id=a>1</p><script src='http://example.com/x.js'></script><script>b.c</script>"
    )
    complaints = "\n".join(opened(path).complaints)
    assert "b is not defined" in complaints
