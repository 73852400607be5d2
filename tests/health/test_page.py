"""The page: one file, well formed, every plot legal to plotly, drawn by a real browser."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_init import audit
from lightning_init.architecture.readings import (
    ActivationReading,
    AttentionReading,
    BaselineReading,
    Histogram,
    InputReading,
    LayerReading,
    LossReading,
    Readings,
    StepReading,
    WeightReading,
)
from lightning_init.health import heatmaps, plots
from lightning_init.health.compare import Comparison
from lightning_init.health.findings import Cause, found
from lightning_init.health.page import page
from lightning_init.health.report import Report
from tests.browser import needs_browser, opened

VOID = {"meta", "br"}


class WellFormed(HTMLParser):
    """Every element is closed in order; collects the text of scripts and of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.titles: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)
        if self.open and self.open[-1] == "td":
            self.rows[-1].append(data)


def full() -> Report:
    """A report of a monitored run with everything in it."""
    shape = Histogram(-1.0, 1.0, (0.5, *[0.0] * 18, 0.5))

    def layer(index: int, scale: float) -> LayerReading:
        after = ActivationReading("tanh", 0.0, 0.6, 0.6, 1.0, 0.0, 0.0, 0.9, histogram=shape)
        return LayerReading(
            f"net.{index}", "Linear", "Linear", 0.0, scale, scale, 3.0, 0.0,
            grad_norm=0.5**index, grad_rms=1e-3, expected_rms=1.0, after=after, histogram=shape,
        )  # fmt: skip

    def weight(index: int) -> WeightReading:
        return WeightReading(
            f"net.{index}.weight", 64, 0.0, 0.1, role="weight", module=f"net.{index}",
            grad_rms=1e-3, update=1e-3,
        )  # fmt: skip

    steps = tuple(
        StepReading(
            step,
            tuple(layer(i, 1.0 + step) for i in range(5)),
            tuple(weight(i) for i in range(5)),
            (LossReading("cross-entropy over 3 classes", 1.2, 1.0986, 1.0, True),),
            (InputReading("net.0", 0.5, 70.0, 70.0, 255.0),),
            (AttentionReading("net.4", 0.2, 30.0, 9.0, 16.0),),
        )
        for step in (0, 1, 2)
    )
    twin = BaselineReading({0: 1.2, 1: 1.2}, {0: 1.1, 1: 0.4}, 64)
    lr = Cause("learning rate", "it is <b>1</b>", "lr=0.1 & </script>")
    data = Cause("data scale", "std 70", "(x - mean) / std")
    late = found("loss_flat", "warning", "loss", 2, 1.0, 0.9, "flat", [lr])
    root = found("saturated_units", "error", "net.2.weight", 0, 0.9, 0.5, "flat", [lr, data])
    findings = (root, late)
    readings = Readings(steps, {0: 1.2, 1: 1.1, 2: float("nan")}, baseline=twin)
    return Report(findings, readings, ("loss: <none>",))


def figures(text: str) -> list[dict]:
    parser = WellFormed()
    parser.feed(text)
    return [json.loads(script) for script in parser.scripts[:-2]]


def test_one_file_with_everything(tmp_path: Path) -> None:
    full().save(tmp_path / "page.HTML")
    text = (tmp_path / "page.HTML").read_text(encoding="utf-8")
    parser = WellFormed()
    parser.feed(text)
    assert not parser.open
    assert parser.links == [], "nothing is fetched"
    assert sum("plotly.js v" in script for script in parser.scripts) == 1
    for title in (
        "Scale over depth", "Distribution of the outputs", "Gradient by layer", "Edge of chaos",
        "Attention", "Loss", "Size of the updates", "Scale over time", "Layers",
    ):  # fmt: skip
        assert title in parser.titles
    assert "it is &lt;b&gt;1&lt;/b&gt;" in text
    assert "lr=0.1 &amp; &lt;/script&gt;" in text
    assert ">loss: &lt;none&gt;<" in text
    assert "saturated_units" in text
    rows = {row[0]: row for row in parser.rows if row}
    assert rows["net.2"][-1] == "error [1]"
    assert rows["net.1"][-1] == "ok"
    assert rows["net.2"][-4:-2] == ["tanh 0.6", "90% sat"]
    for figure in figures(text):
        go.Figure(figure)  # raises on what plotly does not know
        for axis in ("xaxis", "yaxis"):
            assert figure["layout"][axis]["title"]["text"]


def test_plots_show_what_was_measured() -> None:
    report = full()
    chi = plots.chi({"": report})
    assert chi is not None
    # Gradient norms halve from layer to layer towards the loss: x4 per layer to the input.
    assert chi["data"][0]["y"] == pytest.approx([4.0] * 4)
    spread = plots.spread({"": report})
    assert spread is not None
    assert [line["y"] for line in spread["data"]] == [[1.0] * 5, [0.6] * 5, [1.0] * 5]
    gradients = plots.gradients({"": report})
    assert gradients is not None
    assert gradients["data"][1]["y"] == pytest.approx([1e-3 * 8] * 5)
    heat = heatmaps.distribution(report)
    assert heat is not None
    column = [row[0] for row in heat["data"][1]["z"]]
    assert column[0] == column[-1] == 1.0, "mass at both ends"
    assert max(column[5:-5]) == 0.0
    time = heatmaps.over_time(report)
    assert time is not None
    assert time["data"][0]["z"][1] == [1.0] * 5, "std doubled from step 0 to 1"
    loss = plots.losses({"": report})
    assert loss is not None
    assert loss["data"][0]["y"] == [1.2, 1.1, None]
    assert loss["data"][1]["y"] == [1.1, 0.4]
    assert loss["layout"]["shapes"][0]["y0"] == 1.0986


def test_scales_far_apart_share_a_heat_map_in_units_of_their_own() -> None:
    shape = (0.25, 0.5, 0.25)
    layers = tuple(
        LayerReading(str(i), "Linear", "", 0, s, s, s, 0, histogram=Histogram(-s, s, shape))
        for i, s in enumerate((1.0, 1e3, 1e6))
    )
    heat = heatmaps.distribution(Report((), Readings((StepReading(0, layers),))))
    assert heat is not None
    assert "own std" in heat["layout"]["yaxis"]["title"]["text"]
    columns = list(zip(*heat["data"][0]["z"], strict=True))
    assert columns[0] == columns[1] == columns[2]


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_what_was_not_measured_has_no_plot(value: float) -> None:
    layers = (LayerReading("fc", "Linear", "", value, value, value, value, 0),)
    report = Report((), Readings((StepReading(0, layers),)))
    assert figures(page({"": report})) == []
    assert figures(page({"": Report((), Readings())})) == []


def digits_like(depth: int, gain: float) -> Report:
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for _ in range(depth):
        modules += [nn.Linear(32, 32), nn.Tanh()]
    net = nn.Sequential(*modules, nn.Linear(32, 4))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain)
    x, y = torch.randn(64, 32), torch.randint(0, 4, (64,))
    return audit(net, lambda: F.cross_entropy(net(x), y))


@needs_browser
@pytest.mark.slow
def test_a_browser_draws_every_plot(tmp_path: Path) -> None:
    both = Comparison({"small": digits_like(20, 0.3), "right": digits_like(20, 1.0)})
    path = tmp_path / "audit.html"
    both.save(path)
    seen = opened(path)
    assert not seen.complaints
    drawn = seen.dom
    count = len(figures(path.read_text(encoding="utf-8")))
    assert count == 5, "scale, two distributions, gradients, chi"
    assert seen.drawn == count
    assert drawn.count('class="main-svg"') >= count
    assert "right: output" in drawn, "a legend entry"
    # Twenty layers of two runs have a point each, before and after.
    assert drawn.count('class="point"') > 4 * 20
